"""Measures how fast the inference server answers: one line for each request, and a summary.

python3 benchmark.py --server localhost:31001 --crt server.crt --cnum 4 --loop 10 --image cat.jpg

All options are those of "sesame bench", which does the work: --help lists them.
"""
import os
import sys

os.execvp("sesame", ["sesame", "bench", "--each", *sys.argv[1:]])
