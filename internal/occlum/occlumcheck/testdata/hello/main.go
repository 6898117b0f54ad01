// Command hello is the smallest program that a loader can refuse.
package main

func main() { println("hello") }
