#!/usr/bin/env bash
# curl against the gateway. Run by run.sh, which sets KVROUTE_GATEWAY, KVROUTE_ADMIN and KVROUTE_MOCKS.
set -euo pipefail

read -r mock _ <<<"$KVROUTE_MOCKS"
gateway=$KVROUTE_GATEWAY
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
json=(-H 'content-type: application/json')
messages='[{"role":"user","content":"hello curl"}]'
short='{"model":"mock","messages":'$messages',"max_tokens":5,"ignore_eos":true}'
long='{"model":"mock","messages":'$messages',"max_tokens":100,"ignore_eos":true,"stream":true}'
endless=${long/100/4000}

fail() {
  printf 'curl.sh: %s\n' "$*" >&2
  exit 1
}

checked() { printf 'ok: %s\n' "$*"; }

# expect WHAT WANTED FOUND
expect() { [[ $3 == "$2" ]] || fail "$1: wanted $2, got $3"; }

# status CURL_ARGUMENTS...: status of the answer; its body is in $dir/body, its head in $dir/head.
status() { curl -sS -m 60 -o "$dir/body" -D "$dir/head" -w '%{http_code}' "$@"; }

# has FILE PATTERN
has() { grep -qiE "$2" "$dir/$1" || fail "no /$2/ in the $1: $(cat "$dir/$1")"; }

chat=$gateway/v1/chat/completions
expect "a chat" 200 "$(status "${json[@]}" -d "$short" "$chat")"
has body '"object":"chat.completion".*"completion_tokens":5'
has head '^x-kvroute-instance: 127\.0\.0\.1:'
has head '^x-kvroute-reason: '
checked "a chat"

curl -sSN -m 60 "${json[@]}" -d "$long" -o "$dir/body" -w '%{time_starttransfer} %{time_total}' "$chat" >"$dir/times"
expect "events of a stream" 102 "$(grep -c '^data: ' "$dir/body")"
expect "its last line" "data: [DONE]" "$(grep . "$dir/body" | tail -n 1)"
awk '{ exit !($1 < $2 / 2) }' "$dir/times" || fail "events did not come one by one: $(cat "$dir/times")"
checked "a stream: first byte and end after $(cat "$dir/times") s"

expect "a stream over HTTP/1.0" 200 "$(status -0 "${json[@]}" -d "$long" "$chat")"
expect "its events" 102 "$(grep -c '^data: ' "$dir/body")"
grep -qi '^transfer-encoding' "$dir/head" && fail "HTTP/1.0 has no chunks"
checked "a stream over HTTP/1.0"

expect "an offer of HTTP/2" 200 "$(status --http2 "${json[@]}" -d "$short" "$chat")"
checked "an offer to upgrade to HTTP/2 is passed over"

# same WANTED CURL_ARGUMENTS... PATH: the gateway answers with this status, and as an instance does.
same() {
  local wanted=$1 path=${*: -1}
  local arguments=("${@:2:$#-2}")
  expect "$path directly" "$wanted" "$(status "${arguments[@]}" "$mock$path")"
  mv "$dir/body" "$dir/direct-body"
  grep -iE '^(allow|content-type|content-length):' "$dir/head" | sort >"$dir/direct-head"
  expect "$path ${arguments[*]}" "$wanted" "$(status "${arguments[@]}" "$gateway$path")"
  grep -iE '^(allow|content-type|content-length):' "$dir/head" | sort >"$dir/gateway-head"
  # With -I, curl takes the head for the body.
  [[ " ${arguments[*]} " == *" -I "* ]] || cmp "$dir/body" "$dir/direct-body" || fail "another body: $(cat "$dir/body")"
  diff "$dir/gateway-head" "$dir/direct-head" || fail "other headers"
  checked "$wanted as an instance says it: ${arguments[*]} $path"
}
same 400 "${json[@]}" -d '{"model":"mock"}' /v1/chat/completions
same 400 "${json[@]}" -d "${short/5/\"many\"}" /v1/chat/completions
same 400 -H 'content-type: text/plain' -d "$short" /v1/chat/completions
same 404 "${json[@]}" -d "${short/mock/nope}" /v1/chat/completions
same 404 "${json[@]}" -d "${long/mock/nope}" /v1/chat/completions
same 404 "${json[@]}" -d "$short" /v1/nothing
same 405 /v1/chat/completions
same 405 -X OPTIONS /v1/completions
same 405 -X DELETE /v1/models
same 405 -I /v1/chat/completions
expect "no JSON" 400 "$(status "${json[@]}" -d '{"model": ' "$chat")"
has body '"type":"invalid_request_error"'
expect "HEAD /health" 200 "$(status -I "$gateway/health")"
expect "a path outside the API" 404 "$(status "$gateway/nothing")"
has body '"type":"not_found"'

expect "a chunked body" 200 "$(status "${json[@]}" -H 'transfer-encoding: chunked' -d "$short" "$chat")"
has body '"completion_tokens":5'
checked "a chunked body"

# large BYTES: a request with that much that nobody reads.
large() {
  printf '{"prompt":[1,2,3],"max_tokens":2,"ignore_eos":true,"padding":"'
  head -c "$1" /dev/zero | tr '\0' x
  printf '"}'
}
large 4000000 >"$dir/large"
large 20000000 >"$dir/too-large"
completions=$gateway/v1/completions
for framing in content-length chunked; do
  header=(-H 'expect: 100-continue')
  [[ $framing == chunked ]] && header+=(-H 'transfer-encoding: chunked')
  expect "4 MB, $framing" 200 "$(status "${json[@]}" "${header[@]}" --expect100-timeout 20 --data-binary "@$dir/large" "$completions")"
  has head '^HTTP/1\.1 100 Continue'
  has body '"prompt_tokens":3'
  checked "4 MB after 100 Continue, $framing"
done
expect "20 MB" 413 "$(status "${json[@]}" -H 'expect: 100-continue' --expect100-timeout 20 --data-binary "@$dir/too-large" "$completions")"
grep -qi '^HTTP/1\.1 100' "$dir/head" && fail "20 MB were asked for"
checked "20 MB are refused before they are sent"

two=("${json[@]}" -sS -m 60 -o "$dir/body" -w '%{http_code} %{num_connects}\n' -d "$short" "$chat")
expect "two requests" $'200 1\n200 0' "$(curl "${two[@]}" --next "${two[@]}")"
stream=("${json[@]}" -sS -m 60 -o "$dir/body" -w '%{http_code} %{num_connects}\n' -d "$long" "$chat")
wrong=("${json[@]}" -sS -m 60 -o "$dir/body" -w '%{http_code} %{num_connects}\n' -d "{" "$chat")
expect "a stream, an error and a chat" $'200 1\n400 0\n200 0' "$(curl "${stream[@]}" --next "${wrong[@]}" --next "${two[@]}")"
checked "one connection carries several requests"

# gauges: requests in flight at the gateway, and running at the instances.
gauges() {
  local instance
  {
    curl -sS -m 10 "$KVROUTE_ADMIN/metrics" | grep '^kvroute_in_flight{'
    for instance in $KVROUTE_MOCKS; do curl -sS -m 10 "$instance/metrics" | grep '^vllm:num_requests_running{'; done
  } | awk '{ sum += $2 } END { print sum }'
}
code=0
curl -sSN -m 0.5 "${json[@]}" -d "$endless" -o "$dir/body" "$chat" 2>/dev/null || code=$?
expect "curl's exit status at its time-out" 28 "$code"
has body '^data: '
for _ in {1..100}; do
  [[ $(gauges) == 0 ]] && break
  sleep 0.1
done
expect "requests left after a client that went" 0 "$(gauges)"
checked "nothing is left of a client that went"
