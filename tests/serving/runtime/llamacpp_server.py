"""Run llama.cpp's own HTTP server until standard input ends: llamacpp_server.py MODEL PORT."""

import sys

import xllamacpp

params = xllamacpp.CommonParams()
params.model.path = sys.argv[1]
params.model_alias = ["tiny"]
params.hostnames = ["127.0.0.1"]
params.port = int(sys.argv[2])
params.n_ctx = 8 * 4096
params.n_parallel = 8
params.n_threads_http = 64
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
params.embedding = True
params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
params.endpoint_metrics = True
# A prompt that is partly cached is computed in other steps, which may round differently.
params.cache_prompt = False
params.warmup = params.ui = params.fit_params = False
params.cache_ram_mib = 0

server = xllamacpp.Server(params)
print(server.listening_address, flush=True)
sys.stdin.read()
