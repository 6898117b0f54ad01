package ratls

// Read is read, for tests.
var Read = read
