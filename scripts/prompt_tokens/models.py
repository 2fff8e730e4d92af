"""Small models of the kinds that are in use: tokenizers trained here, chat templates in the style of known ones.

The templates (`templates/*.jinja`) are written for this project after the forms of Qwen (ChatML), Llama 3, Mistral and
DeepSeek; none is a copy. Everything is trained on `corpus.txt`.
"""

import json
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

HERE = Path(__file__).parent
CORPUS = (HERE / "corpus.txt").read_text()
QWEN_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3_WORDS = QWEN_WORDS.replace(r"\p{N}|", r"\p{N}{1,3}|", 1)


def added(content, **flags):
    return {"content": content, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
            "special": True} | flags


def byte_level(words, specials, vocab):
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(words), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    tok.decoder = decoders.ByteLevel()
    tok.train_from_iterator([CORPUS], trainers.BpeTrainer(
        vocab_size=vocab, special_tokens=specials, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False))
    return tok


def spm_bpe(vocab):
    """As converters make it of a Llama 2 `tokenizer.model`: bytes as fall-back, spaces as U+2581."""
    tok = Tokenizer(models.BPE(fuse_unk=True, byte_fallback=True, unk_token="<unk>"))
    tok.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    specials = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    # The trainer needs words; the model itself works on whole pieces.
    tok.pre_tokenizer = pre_tokenizers.Split(Regex("▁[^▁]*"), "isolated")
    tok.train_from_iterator([CORPUS], trainers.BpeTrainer(
        vocab_size=vocab, special_tokens=specials, show_progress=False))
    tree = json.loads(tok.to_str())
    tree["pre_tokenizer"] = None
    tree["added_tokens"] = [token for token in tree["added_tokens"] if token["id"] < 3]
    tok = Tokenizer.from_str(json.dumps(tree))
    tok.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)])
    return tok


def chatml():
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tok = byte_level(QWEN_WORDS, specials, 560)
    tok.normalizer = normalizers.NFC()
    tok.add_tokens(["<tool_call>", "</tool_call>", "<think>", "</think>"])
    return tok, {"tokenizer_class": "Qwen2Tokenizer", "bos_token": None, "eos_token": "<|im_end|>",
                 "pad_token": "<|endoftext|>", "additional_special_tokens": specials[1:], "add_bos_token": False,
                 "chat_template": (HERE / "templates/chatml.jinja").read_text()}, {"model_type": "qwen3"}, {}


def llama3():
    specials = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    tok = byte_level(LLAMA3_WORDS, specials, 560)
    bos = tok.token_to_id(specials[0])
    tok.post_processor = processors.Sequence([
        processors.ByteLevel(trim_offsets=True),
        processors.TemplateProcessing(single=f"{specials[0]} $A", pair=f"{specials[0]} $A {specials[0]}:1 $B:1",
                                      special_tokens=[(specials[0], bos)]),
    ])
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": specials[0], "eos_token": specials[4]}
    files = {"chat_template.jinja": (HERE / "templates/llama3.jinja").read_text()}
    return tok, config, {"model_type": "llama"}, files


def mistral():
    """The class rebuilds the tokenizer: what tokenizer.json says of spaces is not what counts."""
    tok = spm_bpe(620)
    config = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>",
              "legacy": False, "add_bos_token": True,
              "added_tokens_decoder": {"0": added("<unk>"), "1": added("<s>"), "2": added("</s>"),
                                       "620": added("[INST]"), "621": added("[/INST]"),
                                       "622": added("[TOOL_CALLS]"), "623": added("[AVAILABLE_TOOLS]"),
                                       "624": added("[/AVAILABLE_TOOLS]"), "625": added("[TOOL_RESULTS]"),
                                       "626": added("[/TOOL_RESULTS]")},
              "chat_template": [
                  {"name": "default", "template": (HERE / "templates/mistral.jinja").read_text()},
                  {"name": "tool_use", "template": (HERE / "templates/mistral.jinja").read_text() + "[use]"}]}
    return tok, config, {"model_type": "llama"}, {}


def prepend():
    """The same kind of tokenizer.json, taken as it is: every piece gets a space in front."""
    tok = spm_bpe(620)
    config = {"tokenizer_class": "PreTrainedTokenizerFast",
              "chat_template": "{% for m in messages %}{{ bos_token }}{{ m.role }}: {{ m.content }}{{ eos_token }}\r\n"
                               "{% endfor %}"}
    files = {"special_tokens_map.json": json.dumps({"bos_token": "<s>", "eos_token": added("</s>"),
                                                    "unk_token": "<unk>"}, indent=1)}
    return tok, config, {"model_type": "mistral"}, files


def merged():
    """Unigram with a space in front of every piece, tokens that swallow spaces around them."""
    # The words of a BPE, since training a Unigram does not give the same to the last bit every time.
    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.Metaspace()
    words.train_from_iterator([CORPUS], trainers.BpeTrainer(vocab_size=497, show_progress=False))
    pieces = sorted(words.get_vocab().items(), key=lambda entry: entry[1])
    scored = [(piece, -round(4 + (8 - len(piece)) / 3 + id_ / 200, 4)) for piece, id_ in pieces]
    tok = Tokenizer(models.Unigram([("<unk>", 0.0), ("<bos>", 0.0), ("<eos>", 0.0), *scored], 0, False))
    tok.normalizer = normalizers.NFKC()
    tok.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tok.add_special_tokens(["<unk>", "<bos>", "<eos>"])
    tok.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", pair="<bos> $A <eos> $B <eos>", special_tokens=[("<bos>", 1), ("<eos>", 2)])
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<bos>", "eos_token": "<eos>",
              "call_token": "<|call|>", "image_token": "<image>",
              "added_tokens_decoder": {
                  "0": added("<unk>"), "1": added("<bos>"), "2": added("<eos>"),
                  "500": added("<|User|>", rstrip=True), "501": added("<|Assistant|>", lstrip=True, rstrip=True),
                  "502": added("<|call|>"), "503": added("<|result|>", special=False, normalized=True)},
              "chat_template": (HERE / "templates/merged.jinja").read_text()}
    return tok, config, {"model_type": "deepseek_v3"}, {}


MODELS = {"chatml": chatml, "llama3": llama3, "mistral": mistral, "prepend": prepend, "merged": merged}


def write(name, out):
    """Writes the model's directory and returns its path."""
    directory = Path(out) / name
    directory.mkdir(parents=True, exist_ok=True)
    tok, config, model, files = MODELS[name]()
    # Compact: the fixtures are committed.
    (directory / "tokenizer.json").write_text(tok.to_str(pretty=False) + "\n")
    (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=1, ensure_ascii=False) + "\n")
    (directory / "config.json").write_text(json.dumps(model) + "\n")
    for file, text in files.items():
        (directory / file).write_text(text)
    return directory
