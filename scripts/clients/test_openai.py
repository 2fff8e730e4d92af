"""The openai package against the gateway: what it is told, and what reaches the instances."""

import asyncio
import json
import re
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import openai
import pytest
from deployment import ADMIN, BINARY, GATEWAY, MOCKS, eventually, fetch, in_flight
from deployment import nothing_is_left, running, total

# Ten milliseconds a token: these run for as long as a test may need them to.
ENDLESS = {"max_tokens": 4000, "extra_body": {"ignore_eos": True}}
EXACT = {"ignore_eos": True}


def new_client(base=GATEWAY, **options):
    """A client that does not try again by itself, so that each test sees the first answer."""
    options = {"api_key": "none", "max_retries": 0, "timeout": 60} | options
    return openai.OpenAI(base_url=f"{base}/v1", **options)


@pytest.fixture
def client():
    with new_client() as client:
        yield client


def say(text):
    return [{"role": "system", "content": "Be brief."}, {"role": "user", "content": text}]


def abandoned():
    return total(fetch(f"{ADMIN}/metrics"), "kvroute_requests_total", outcome="abandoned")


@pytest.fixture
def faults():
    """Sets faults of all instances; they are gone after the test."""

    def set_faults(**faults):
        for mock in MOCKS:
            fetch(f"{mock}/mock/faults", json.dumps(faults).encode())

    yield set_faults
    set_faults()


def test_models(client):
    (model,) = client.models.list().data
    assert (model.id, model.object, model.owned_by) == ("mock", "model", "vllm")


def test_chat_whole_and_streamed(client):
    asked = {"model": "mock", "messages": say("whole or streamed"), "max_tokens": 24}
    asked["extra_body"] = EXACT
    whole = client.chat.completions.create(**asked)
    assert whole.id.startswith("chatcmpl-") and whole.object == "chat.completion"
    (choice,) = whole.choices
    assert (choice.finish_reason, choice.message.role) == ("length", "assistant")
    assert whole.usage.completion_tokens == 24
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + 24

    chunks = list(client.chat.completions.create(**asked, stream=True))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content for chunk in chunks) == choice.message.content
    assert [chunk.choices[0].finish_reason for chunk in chunks][-1] == "length"
    assert len({chunk.id for chunk in chunks}) == 1 and all(not chunk.usage for chunk in chunks)


def test_usage_in_the_last_event(client):
    stream = client.chat.completions.create(
        model="mock", messages=say("count"), max_tokens=7, extra_body=EXACT,
        stream=True, stream_options={"include_usage": True},
    )
    *events, last = stream
    assert last.choices == [] and last.usage.completion_tokens == 7
    assert last.usage.prompt_tokens_details.cached_tokens == 0
    assert all(event.choices and event.usage is None for event in events)


def test_the_stream_helper_puts_two_choices_together(client):
    # The helper wants answers that end by themselves: nine words, and then the token that ends them.
    asked = {"model": "mock", "messages": say("twice"), "n": 2, "logit_bias": {"2": 100}}
    asked["extra_body"] = {"min_tokens": 9}
    with client.chat.completions.stream(**asked) as stream:
        kinds = {event.type for event in stream}
        whole = stream.get_final_completion()
    assert {"chunk", "content.delta", "content.done"} <= kinds
    texts = [choice.message.content for choice in whole.choices]
    assert [len(text.split()) for text in texts] == [9, 9] and texts[0] != texts[1]
    again = client.chat.completions.create(**asked)
    assert [choice.message.content for choice in again.choices] == texts


def test_logprobs(client):
    answer = client.chat.completions.create(
        model="mock", messages=say("how likely"), max_tokens=5, extra_body=EXACT,
        logprobs=True, top_logprobs=3,
    )
    content = answer.choices[0].logprobs.content
    assert [len(token.top_logprobs) for token in content] == [3] * 5


def test_completions_of_text_and_token_ids(client):
    asked = {"model": "mock", "max_tokens": 8, "extra_body": EXACT}
    text = client.completions.create(prompt="Once upon a time", **asked)
    assert text.object == "text_completion" and text.usage.completion_tokens == 8
    stream = client.completions.create(prompt="Once upon a time", stream=True, **asked)
    assert "".join(chunk.choices[0].text for chunk in stream) == text.choices[0].text

    ids = client.completions.create(prompt=[1, 20, 300, 4000], **asked)
    assert ids.usage.prompt_tokens == 4
    both = client.completions.create(prompt=[[1, 20, 300, 4000], [5, 6]], **asked)
    assert [choice.index for choice in both.choices] == [0, 1]
    assert both.choices[0].text == ids.choices[0].text
    assert both.usage.prompt_tokens == 6
    two = client.completions.create(prompt=["Once upon a time", "and then"], **asked)
    assert two.choices[0].text == text.choices[0].text


def test_headers_say_where_a_request_went(client):
    names = [mock.removeprefix("http://") for mock in MOCKS]
    long = say("the same long prompt " * 100)
    asked = {"model": "mock", "messages": long, "max_tokens": 2, "extra_body": EXACT}
    first = client.chat.completions.with_raw_response.create(**asked)
    assert first.headers["x-kvroute-instance"] in names
    assert first.headers["x-kvroute-reason"]
    assert first.headers["x-kvroute-predicted-cached-tokens"] == "0"
    assert first.parse().usage.prompt_tokens_details.cached_tokens == 0

    # The policy weighs load, and a reading may still show the request that just ended.
    nothing_is_left()
    again = client.chat.completions.with_raw_response.create(**asked)
    assert again.headers["x-kvroute-instance"] == first.headers["x-kvroute-instance"]
    assert int(again.headers["x-kvroute-predicted-cached-tokens"]) > 0
    assert again.parse().usage.prompt_tokens_details.cached_tokens > 0
    nothing_is_left()
    with client.chat.completions.with_streaming_response.create(**asked, stream=True) as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        assert stream.headers["x-kvroute-instance"] == first.headers["x-kvroute-instance"]
        assert list(stream.iter_lines())[-2] == "data: [DONE]"


def bad_request(message, param):
    error = {"message": message, "type": "BadRequestError", "param": param, "code": 400}
    return openai.BadRequestError, error


INT_PARSING = (
    "1 validation error:\n  {'type': 'int_parsing', 'loc': 'body.max_tokens', 'msg': 'Input should be a valid "
    "integer, unable to parse string as an integer', 'input': 'many'}"
)
NO_MODEL = "The model `nope` does not exist. Valid aliases: mock."
UNKNOWN = {"message": NO_MODEL, "type": "NotFoundError", "param": "model", "code": 404}
# The messages are those of recorded answers of vLLM 0.32.0 (crates/mock-server/tests/fixtures).
ERRORS = [
    ({"model": "nope"}, (openai.NotFoundError, UNKNOWN)),
    ({"model": "nope", "stream": True}, (openai.NotFoundError, UNKNOWN)),
    (
        {"temperature": -1},
        bad_request(
            "temperature must be non-negative, got -1.0. (parameter=temperature, value=-1.0)",
            "temperature",
        ),
    ),
    (
        {"max_tokens": -5},
        bad_request(
            "max_tokens must be at least 1, got -5. (parameter=max_tokens, value=-5)", "max_tokens"
        ),
    ),
    (
        {"stream_options": {"include_usage": True}},
        bad_request(
            "Stream options can only be defined when `stream=True`. (parameter=stream_options)",
            "stream_options",
        ),
    ),
    (
        {"max_tokens": "many"},
        (
            openai.BadRequestError,
            {"message": INT_PARSING, "type": "Bad Request", "param": "body.max_tokens", "code": 400},
        ),
    ),
]


@pytest.mark.parametrize("change, expected", ERRORS, ids=lambda value: str(value)[:40])
def test_errors_are_the_instances_own(client, change, expected):
    kind, body = expected
    asked = {"model": "mock", "messages": say("wrong"), "max_tokens": 3} | change
    with pytest.raises(kind) as caught:
        client.chat.completions.create(**asked)
    assert caught.value.body == body
    # Through the gateway or not, it is the same answer.
    with new_client(MOCKS[0]) as direct, pytest.raises(kind) as caught_direct:
        direct.chat.completions.create(**asked)
    assert caught_direct.value.response.content == caught.value.response.content


def test_a_prompt_that_is_too_long(client):
    limit = client.models.list().data[0].max_model_len
    with pytest.raises(openai.BadRequestError, match=f"maximum context length is {limit} tokens"):
        client.completions.create(model="mock", prompt=[7] * (limit + 1))


def test_a_path_that_no_instance_has(client):
    with pytest.raises(openai.NotFoundError) as caught:
        client.fine_tuning.jobs.list()
    assert caught.value.response.json() == {"detail": "Not Found"}


@pytest.mark.parametrize("limit", [5, 5.0, "5"])
def test_numbers_are_read_as_laxly_as_an_instance_does(client, limit):
    answer = client.chat.completions.create(
        model="mock", messages=say("lax"), extra_body={"max_tokens": limit} | EXACT
    )
    assert answer.usage.completion_tokens == 5


def test_an_engine_error_is_an_internal_server_error(client, faults):
    faults(error_rate=1.0)
    with pytest.raises(openai.InternalServerError) as caught:
        client.chat.completions.create(model="mock", messages=say("break"))
    assert caught.value.body["message"] == "injected error"
    faults()
    assert client.chat.completions.create(model="mock", messages=say("break"), max_tokens=2)


def test_a_stream_that_breaks_off_raises(client, faults):
    faults(cut_after_tokens=3)
    stream = client.chat.completions.create(
        model="mock", messages=say("cut"), stream=True, **ENDLESS
    )
    seen = []
    with pytest.raises(openai.APIError) as caught:
        seen.extend(stream)
    # The event with the role, and at least the tokens but those that were on their way with the cut.
    assert 1 <= len(seen) <= 4
    assert caught.value.body["type"] == "answer_cut" and caught.value.body["retryable"]
    nothing_is_left()


def test_a_client_that_closes_its_stream_stops_the_engine(client):
    before = abandoned()
    stream = client.chat.completions.create(
        model="mock", messages=say("endless"), stream=True, **ENDLESS
    )
    for _ in range(3):
        next(stream)
    assert (in_flight(), running()) == (1, 1)
    stream.close()
    nothing_is_left()
    assert abandoned() == before + 1


def test_a_timeout_of_the_client_stops_the_engine(client):
    before = abandoned()
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.3).chat.completions.create(
            model="mock", messages=say("too slow"), **ENDLESS
        )
    nothing_is_left()
    assert abandoned() == before + 1
    patient = client.with_options(timeout=30).chat.completions
    assert patient.create(model="mock", messages=say("in time"), max_tokens=2).usage


async def ask(client, number):
    asked = {"model": "mock", "messages": say(f"question {number}"), "max_tokens": 16}
    if number % 2:
        answer = await client.chat.completions.create(**asked, extra_body=EXACT)
        return answer.choices[0].message.content
    stream = await client.chat.completions.create(**asked, extra_body=EXACT, stream=True)
    return "".join([chunk.choices[0].delta.content async for chunk in stream])


def test_fifty_at_once():
    async def run():
        answers = []
        # An instance has the same answer to the same prompt: none may have been mixed up.
        for base in [GATEWAY, MOCKS[0]]:
            options = {"api_key": "none", "max_retries": 0, "timeout": 60}
            async with openai.AsyncOpenAI(base_url=f"{base}/v1", **options) as client:
                answers.append(await asyncio.gather(*(ask(client, n) for n in range(50))))
        return answers

    gateway, direct = asyncio.run(run())
    assert gateway == direct and len(set(gateway)) == 50
    nothing_is_left()


def test_a_cancelled_task_stops_the_engine():
    async def run():
        client = openai.AsyncOpenAI(base_url=f"{GATEWAY}/v1", api_key="none", max_retries=0)
        async with client:
            asked = client.chat.completions.create(
                model="mock", messages=say("cancel me"), **ENDLESS
            )
            task = asyncio.create_task(asked)
            await asyncio.to_thread(eventually, "an instance runs it", lambda: running() == 1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(run())
    nothing_is_left()


class Recorder(BaseHTTPRequestHandler):
    """An instance that keeps what it is sent."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.answer(200, {})

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        headers = {(name.lower(), value) for name, value in self.headers.items()}
        self.server.received.append((self.path, headers, body))
        message = {"role": "assistant", "content": "recorded", "x_unknown": [1]}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        whole = {"id": "c", "object": "chat.completion", "created": 1, "model": "m"}
        self.answer(200, whole | {"choices": [choice], "x_extension": {"a": None}})

    def answer(self, status, value):
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def recorder():
    """Its base URL, that of a gateway before it, and what it received."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Recorder)
    server.received = []
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}"
    listen = ["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"]
    gateway = subprocess.Popen(
        [BINARY, "serve", "--instance", url, *listen], stderr=subprocess.PIPE, text=True
    )
    lines = iter(gateway.stderr.readline, "")
    found = filter(None, (re.search(r"gateway on (http://\S+),", line) for line in lines))
    gateway_url = next(found)[1]

    def is_ready():
        try:
            return fetch(f"{gateway_url}/ready") is not None
        except OSError:
            return False

    eventually("the gateway is ready", is_ready)
    yield url, gateway_url, server.received
    gateway.terminate()
    assert gateway.wait(timeout=30) == 0
    gateway.stderr.close()
    server.shutdown()
    server.server_close()
    thread.join()


def test_requests_reach_an_instance_unchanged(recorder):
    *bases, received = recorder
    parameters = {"type": "object", "properties": {"city": {"type": "string"}}}
    function = {"name": "weather", "description": "Wetter für «Städte» 🌦", "parameters": parameters}
    call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "weather?"}]},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "rain"},
    ]
    for base in bases:
        with new_client(base) as client:
            answer = client.chat.completions.create(
                model="m", messages=messages, tools=[{"type": "function", "function": function}],
                tool_choice="auto", response_format={"type": "json_object"}, seed=1,
                extra_body={"top_k": 5, "guided_choice": ["a"], "vllm_xargs": {"x": 1.0}},
                extra_headers={"X-Session-ID": "s 1", "traceparent": "00-0-0-01"},
                extra_query={"api-version": "ä b"},
            )
        # What the package's models do not know is there too.
        assert answer.choices[0].message.x_unknown == [1] and answer.x_extension == {"a": None}
    (path, headers, body), (gateway_path, gateway_headers, gateway_body) = received
    assert (gateway_path, gateway_body) == (path, body)
    assert json.loads(body)["vllm_xargs"] == {"x": 1.0}
    # Connection fields belong to one hop; the host is the one that the client named.
    assert {name for name, _ in headers ^ gateway_headers} == {"host", "connection"}
