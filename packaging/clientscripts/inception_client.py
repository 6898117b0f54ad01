"""Asks the inference server what an image shows.

python3 inception_client.py --server=localhost:31001 --crt server.crt --image cat.jpg

All options are those of "sesame predict", which does the work: --help lists them.
"""
import os
import sys

os.execvp("sesame", ["sesame", "predict", *sys.argv[1:]])
