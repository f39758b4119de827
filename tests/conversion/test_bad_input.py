"""What is damaged, incomplete, hostile or in the way is refused, and nothing is left behind."""

import re

import pytest
import torch

from hyperllava_hf.cli import main
from hyperllava_hf.conversion import convert
from tests.conversion import damage
from tests.conversion.adapter_writers import write_lora
from tests.conversion.command_line import run_child, spell
from tests.conversion.damage import EMBEDDING, NORM
from tests.conversion.fork_writers import write_fork
from tests.conversion.layout_writers import (
    write_delta,
    write_llava_hf,
    write_original,
    write_own,
    write_projector,
)
from tests.conversion.results import hash_others, hash_tree, list_names
from tests.conversion.tiny_llava import draw_state
from tests.conversion.zero_writers import write_zero

Q_PROJ = "model.layers.1.self_attn.q_proj.weight"
UP = "model.layers.0.mlp.up_proj.weight"


@pytest.fixture
def refuse(tmp_path, capsys):
    """Convert in both ways; both refuse with these words in order, and nothing changes.

    only_command: where the function would take the same seconds once more.
    """

    def check(source, *words, destination=None, only_command=False, **options):
        destination = destination or tmp_path / "result"
        pattern = "(?s)" + ".*".join(words)
        before = hash_tree(tmp_path)
        if not only_command:
            with pytest.raises(ValueError, match=pattern):
                convert(source, destination, **options)
            assert hash_tree(tmp_path) == before
        capsys.readouterr()
        assert main(spell(source, destination, **options)) == 2
        out, err = capsys.readouterr()
        assert len(err.splitlines()) == 1, err
        assert err.startswith("hyperllava: ")
        assert re.search(pattern, err)
        assert out == ""
        assert hash_tree(tmp_path) == before

    return check


# Two shards of safetensors; a change; what the message says.
SAFETENSORS = {
    "truncated": (
        lambda f: damage.truncate(damage.list_weights(f)[1], 3000),
        ["model-00002-of-00002", "cut short|damaged"],
    ),
    "truncated by a byte": (
        lambda f: damage.truncate(damage.list_weights(f)[0], -1),
        ["model-00001-of-00002", "cut short|damaged"],
    ),
    "empty": (lambda f: damage.truncate(damage.list_weights(f)[0], 0), ["model-00001-of-00002"]),
    "header damaged": (damage.damage_header, ["model-00001-of-00002", "damaged"]),
    "header too long": (damage.inflate_header, ["model-00001-of-00002", "damaged"]),
    "offsets beyond the end": (damage.shift_offsets, ["model-00001-of-00002", "damaged"]),
    "LFS pointer": (
        lambda f: damage.write_pointer(damage.list_weights(f)[0]),
        ["model-00001-of-00002"],
    ),
    "shard missing": (
        lambda f: damage.list_weights(f)[1].unlink(),
        ["model-00002-of-00002.safetensors", "missing"],
    ),
    "index missing and a shard missing": (
        lambda f: (damage.find_index(f).unlink(), damage.list_weights(f)[0].unlink()),
        ["1 of 2 shards"],
    ),
    "index names a missing file": (
        lambda f: damage.point_index_elsewhere(f, NORM, "model-00009-of-00009.safetensors"),
        ["model-00009-of-00009.safetensors", "missing"],
    ),
    "index leaves the folder": (
        lambda f: damage.point_index_elsewhere(f, NORM, "../secret.safetensors"),
        [r"\.\./secret.safetensors", "outside"],
    ),
    "index names an absolute path": (
        lambda f: damage.point_index_elsewhere(f, NORM, str(damage.list_weights(f)[0])),
        ["outside"],
    ),
    "index names a number": (lambda f: damage.point_index_elsewhere(f, NORM, 7), ["7"]),
    "index names a key that is not there": (
        lambda f: damage.point_index_elsewhere(
            f, "model.layers.9.mlp.up_proj.weight", damage.list_weights(f)[0].name
        ),
        ["model.layers.9.mlp.up_proj.weight"],
    ),
    "index names another file of the key": (
        lambda f: damage.point_index_elsewhere(
            f,
            NORM,
            next(p for p in damage.list_weights(f) if p != damage.find_file_of(f, NORM)).name,
        ),
        [NORM],
    ),
    "index leaves a key out": (lambda f: damage.remove_from_index(f, NORM), [NORM]),
    "index is no JSON": (lambda f: damage.truncate(damage.find_index(f), 50), ["JSON"]),
    "index without a map": (
        lambda f: damage.change_json(damage.find_index(f), lambda i: i.pop("weight_map")),
        ["weight_map"],
    ),
    "a key in two shards": (damage.duplicate_key, ["00001-of-00002", "00002-of-00002", "once"]),
    "no tensor at all": (damage.save_header_only, ["expected"]),
    "wrong shape": (
        lambda f: damage.change_key(f, Q_PROJ, lambda t: t[:-1]),
        [Q_PROJ, r"\(23, 24\)", r"\(24, 24\)"],
    ),
    "transposed": (
        lambda f: damage.change_key(f, UP, lambda t: t.T.contiguous()),
        [UP, r"\(24, 41\)", r"\(41, 24\)"],
    ),
    "one dimension more": (
        lambda f: damage.change_key(f, NORM, lambda t: t[None]),
        [NORM, r"\(1, 24\)", r"\(24,\)"],
    ),
    "embedding too narrow": (
        lambda f: damage.change_key(f, EMBEDDING, lambda t: t[:, :-1]),
        [EMBEDDING, "23"],
    ),
    "head and embedding of different lengths": (
        lambda f: damage.change_key(f, "lm_head.weight", lambda t: t[:-3]),
        ["328"],
    ),
    "configuration of another model": (
        lambda f: damage.change_config(f, num_hidden_layers=2),
        [r"model\.layers\.2"],
    ),
    "NaN": (damage.put_value(Q_PROJ, float("nan")), ["layers.1.self_attn.q_proj", "NaN"]),
    "Inf": (damage.put_value(EMBEDDING, float("-inf")), ["embed_tokens", "Inf", "nonfinite"]),
    "two dtypes": (
        lambda f: damage.change_key(f, UP, lambda t: t.half()),
        ["float32", "float16", "--dtype"],
    ),
    "integers": (
        lambda f: damage.change_key(f, UP, lambda t: (t * 100).to(torch.int8)),
        ["int8"],
    ),
    "tokenizer absent": (
        lambda f: [path.unlink() for path in f.glob("*token*")],
        ["no tokenizer", "tokenizer.model"],
    ),
    "tokenizer damaged": (
        lambda f: damage.truncate(f / "tokenizer.model", 200),
        ["tokenizer.model"],
    ),
    "configuration absent": (lambda f: (f / "config.json").unlink(), ["config.json"]),
    "configuration no JSON": (lambda f: damage.truncate(f / "config.json", 99), ["config.json"]),
    "configuration no object": (
        lambda f: (f / "config.json").write_text("[1, 2]"),
        ["config.json", "list"],
    ),
    "a number as text": (lambda f: damage.change_config(f, hidden_size="24"), ["hidden_size"]),
    "no number of blocks": (
        lambda f: damage.change_config(f, num_hidden_layers=None),
        ["num_hidden_layers"],
    ),
    "heads that do not divide": (
        lambda f: damage.change_config(f, num_attention_heads=5),
        ["hidden size|num_attention_heads|_proj"],
    ),
    "architectures that are no names": (
        lambda f: damage.change_config(f, architectures=[0]),
        ["architectures"],
    ),
    "sizes of pictures that are none": (
        lambda f: damage.change_json(
            f.with_name("source-clip") / "preprocessor_config.json",
            lambda content: content.update(crop_size=True),
        ),
        ["preprocessor_config.json|crop_size|size"],
    ),
    "tokenizer with a hole": (
        lambda f: damage.drop_bytes(f / "tokenizer.model", 2000, 7),
        ["tokenizer.model"],
    ),
    "a length limit that is no number": (
        lambda f: damage.change_json(
            f / "tokenizer_config.json", lambda content: content.update(model_max_length="x")
        ),
        ["model_max_length"],
    ),
    "linear projector": (
        lambda f: damage.change_config(f, mm_projector_type="linear"),
        ["mm_projector_type", "linear", "mlp2x_gelu"],
    ),
    "deeper projector": (
        lambda f: damage.change_config(f, mm_projector_type="mlp3x_gelu"),
        ["mlp3x_gelu"],
    ),
    "start and end tokens": (
        lambda f: damage.change_config(f, mm_use_im_start_end=True),
        ["mm_use_im_start_end"],
    ),
    "another tower": (
        lambda f: damage.change_config(f, mm_vision_tower="google/siglip-so400m-patch14-384"),
        ["siglip"],
    ),
    "tower not found": (
        lambda f: damage.change_config(f, mm_vision_tower="./nowhere/clip"),
        ["nowhere", "--vision-tower"],
    ),
    "tower not named": (
        lambda f: damage.change_json(f / "config.json", lambda c: c.pop("mm_vision_tower")),
        ["--vision-tower"],
    ),
    "another decoder": (
        lambda f: damage.change_config(f, model_type="llava_mistral"),
        ["llava_mistral"],
    ),
    "quantised": (
        lambda f: damage.change_config(f, quantization_config={"load_in_4bit": True}),
        ["quantis"],
    ),
}


@pytest.mark.parametrize("name", SAFETENSORS)
def test_damaged_folder_is_refused(name, tmp_path, refuse):
    change, words = SAFETENSORS[name]
    source = write_original(tmp_path / "source", kind="safetensors")
    change(source.path)
    refuse(source.path, *words)


def change_tensors(*names, to=None):
    """Take tensors away, or add one under a name."""

    def change(folder):
        for path in damage.list_weights(folder):
            damage.change_tensors(path, lambda tensors: [tensors.pop(name, None) for name in names])
        if to:
            last = damage.list_weights(folder)[0]
            damage.change_tensors(last, lambda tensors: tensors.update({to: torch.ones(3)}))

    return change


KEYS = {
    "no norm": (change_tensors(NORM), ["missing", "model.language_model.norm.weight"]),
    "no head": (change_tensors("lm_head.weight"), ["missing", "lm_head.weight"]),
    "no bias of the projector": (
        change_tensors("model.mm_projector.2.bias"),
        ["missing", "linear_2.bias"],
    ),
    "a block's weight": (change_tensors(Q_PROJ), ["missing", "layers.1.self_attn.q_proj"]),
    "unknown key": (change_tensors(to="model.extra.weight"), ["unknown", "model.extra.weight"]),
    "a bias Llama has not": (
        change_tensors(to="model.layers.0.self_attn.q_proj.bias"),
        ["unknown", "layers.0.self_attn.q_proj.bias"],
    ),
    "a block too many": (
        change_tensors(to="model.layers.3.mlp.up_proj.weight"),
        ["unknown", "layers.3.mlp.up_proj"],
    ),
    "a projector too many": (
        change_tensors(to="model.mm_projector.4.weight"),
        ["unknown", "mm_projector.4"],
    ),
}


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
@pytest.mark.parametrize("name", KEYS)
def test_unknown_and_missing_keys_are_named(name, kind, tmp_path, refuse):
    change, words = KEYS[name]
    source = write_original(tmp_path / "source", kind=kind, num_shards=1)
    change(source.path)
    refuse(source.path, *words)


BIN = {
    "truncated": (lambda f: damage.truncate(damage.list_weights(f)[0], 3000), ["00001-of-00002"]),
    "truncated by a byte": (
        lambda f: damage.truncate(damage.list_weights(f)[1], -1),
        ["00002-of-00002"],
    ),
    "empty": (lambda f: damage.truncate(damage.list_weights(f)[0], 0), ["00001-of-00002"]),
    "LFS pointer": (lambda f: damage.write_pointer(damage.list_weights(f)[0]), ["LFS"]),
    "a key in two shards": (damage.duplicate_key, ["00001-of-00002", "00002-of-00002", "once"]),
    "no dict": (lambda f: torch.save([torch.ones(2)], damage.list_weights(f)[0]), ["list"]),
    "no tensor": (
        lambda f: torch.save({"step": 3}, damage.list_weights(f)[0]),
        ["step", "int"],
    ),
}


@pytest.mark.parametrize("name", BIN)
def test_damaged_bin_file_is_refused(name, tmp_path, refuse):
    change, words = BIN[name]
    source = write_original(tmp_path / "source", kind="bin")
    change(source.path)
    refuse(source.path, *words)


HOSTILE = {
    "pytorch_model.bin": (write_original, {"num_shards": 1}, "pytorch_model.bin"),
    "second shard": (write_original, {}, "pytorch_model-00002-of-00002.bin"),
    "vision tower": (write_original, {}, "../source-clip/pytorch_model.bin"),
    "projector": (write_projector, {}, "mm_projector.bin"),
    "adapter": (write_lora, {}, "adapter_model.bin"),
    "non_lora_trainables": (write_lora, {}, "non_lora_trainables.bin"),
    "delta": (write_delta, {}, "pytorch_model-00001-of-00002.bin"),
    "fork": (write_fork, {"num_shards": 1}, "pytorch_model.bin"),
    "llava-hf": (write_llava_hf, {"kind": "bin", "num_shards": 1}, "pytorch_model.bin"),
}


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
@pytest.mark.parametrize("name", HOSTILE)
def test_pickle_that_would_run_code_is_refused_and_runs_none(name, form, tmp_path, refuse):
    write, options, file = HOSTILE[name]
    source = write(tmp_path / "source", **options)
    trace = tmp_path / "trace"
    damage.put_code_into(source.path / file, trace, form)
    refuse(source.path, file.rsplit("/", 1)[-1], **source.options)
    assert not trace.exists()


def test_hostile_pickle_is_hostile(tmp_path):
    damage.put_code_into(tmp_path / "model.bin", tmp_path / "trace")
    torch.load(tmp_path / "model.bin", weights_only=False)
    assert (tmp_path / "trace").exists()


@pytest.mark.parametrize("write", [write_original, write_llava_hf, write_own])
def test_code_that_a_source_names_neither_runs_nor_travels(write, tmp_path):
    source = write(tmp_path / "source")
    trace = tmp_path / "trace"
    for folder in [source.path, *source.path.parent.glob("source-clip")]:
        (folder / "evil.py").write_text(f"open({str(trace)!r}, 'w').close()\nclass Evil: pass\n")
        names = ("AutoConfig", "AutoModel", "AutoTokenizer", "AutoProcessor", "AutoImageProcessor")
        auto_map = dict.fromkeys(names, "evil.Evil")
        auto_map["AutoTokenizer"] = ["evil.Evil", "evil.Evil"]
        for path in folder.glob("*config.json"):
            if path.name != "generation_config.json":
                damage.change_json(path, lambda content: content.update(auto_map=auto_map))  # noqa: B023
    convert(source.path, tmp_path / "result")
    assert not trace.exists()
    for path in (tmp_path / "result").rglob("*"):
        assert path.name != "evil.py"
        assert b"evil" not in path.read_bytes() or path.name == "conversion.json"


@pytest.mark.parametrize(("stage", "part"), [(2, "optim_states"), (3, "model_states")])
def test_hostile_deepspeed_file_runs_no_code(stage, part, tmp_path, ranks_folder, refuse):
    source = write_zero(tmp_path / "source", ranks_folder, stage)
    file = sorted(source.path.rglob(f"*{part}.pt"))[-1]
    content = torch.load(file, weights_only=False)
    trace = tmp_path / "trace"
    torch.save({**content, "hostile": damage.Hostile(trace)}, file)
    refuse(source.path, "DeepSpeed could not consolidate", only_command=True)
    assert not trace.exists()


def test_deepspeed_folder_without_deepspeed_names_it(tmp_path, ranks_folder, refuse, monkeypatch):
    from hyperllava_hf.conversion import zero_checkpoints

    source = write_zero(tmp_path / "source", ranks_folder, 2)
    monkeypatch.setattr(zero_checkpoints, "find_spec", lambda name: None)
    refuse(source.path, "deepspeed", "not installed", "pip install")


def test_deepspeed_folder_without_a_rank_is_refused(tmp_path, ranks_folder, refuse):
    source = write_zero(tmp_path / "source", ranks_folder, 3)
    sorted(source.path.rglob("*optim_states.pt"))[-1].unlink()
    refuse(source.path, "DeepSpeed could not consolidate", only_command=True)


def test_nonfinite_weights_pass_when_allowed(tmp_path):
    source = write_original(tmp_path / "source", kind="safetensors")
    damage.put_value(EMBEDDING, float("inf"))(source.path)
    damage.put_value(Q_PROJ, float("nan"))(source.path)
    convert(source.path, tmp_path / "result", allow_nonfinite=True)
    assert (tmp_path / "result" / "config.json").is_file()


def test_overflow_of_a_narrower_dtype_is_refused(tmp_path, refuse):
    source = write_original(tmp_path / "source", kind="safetensors")
    damage.put_value(Q_PROJ, 1e6)(source.path)
    refuse(source.path, "q_proj", "Inf", "dtype", dtype="float16")


def test_two_dtypes_pass_when_one_is_named(tmp_path):
    source = write_original(tmp_path / "source", kind="safetensors")
    damage.change_key(source.path, UP, lambda tensor: tensor.half())
    convert(source.path, tmp_path / "result", dtype="float32")


def test_tower_and_projector_of_other_dtypes_take_the_decoders(tmp_path):
    source = write_original(tmp_path / "source", dtype=torch.float16, kind="safetensors")
    tower = tmp_path / "source-clip"
    damage.change_tensors(
        tower / "model.safetensors",
        lambda tensors: tensors.update(
            {n: t.float() for n, t in tensors.items() if t.is_floating_point()}
        ),
    )
    report = convert(source.path, tmp_path / "result")
    assert {tensor.dtype for tensor in report.planned} == {"float16"}
    assert any("vision_tower" in note and "float16" in note for note in report.notes)


def test_tokenizer_with_more_tokens_than_rows_is_refused(tmp_path, refuse):
    state = draw_state(vocab_size=320)
    source = write_original(tmp_path / "source", state=state, vocab_size=320)
    refuse(source.path, "tokenizer", "331", "more tokens", "320")


def test_tokenizer_of_a_much_smaller_vocabulary_is_refused(tmp_path, refuse):
    state = draw_state(vocab_size=1700)
    source = write_original(tmp_path / "source", state=state, vocab_size=1700)
    refuse(source.path, "tokenizer", "331", "fewer tokens", "1700")


MISSING_PARTS = {
    "projector without its LLM": (write_projector, "base_llm", ["--base-llm"]),
    "LoRA without its LLM": (write_lora, "base_llm", ["--base-llm"]),
    "delta without its base": (write_delta, "base_llm", ["--base-llm"]),
}


@pytest.mark.parametrize("name", MISSING_PARTS)
def test_missing_part_is_asked_for(name, tmp_path, refuse):
    write, option, words = MISSING_PARTS[name]
    source = write(tmp_path / "source")
    del source.options[option]
    refuse(source.path, *words, **source.options)


def test_lora_without_non_lora_trainables_is_refused(tmp_path, refuse):
    source = write_lora(tmp_path / "source", non_lora=False)
    refuse(source.path, "non_lora_trainables.bin", "projector", **source.options)


def test_lora_for_another_base_is_refused(tmp_path, refuse):
    source = write_lora(tmp_path / "source", kind="safetensors")
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    damage.change_tensors(
        source.path / "adapter_model.safetensors",
        lambda tensors: tensors.update({name: tensors[name][:, :-2].contiguous()}),
    )
    refuse(source.path, r"layers\.0\.self_attn\.q_proj", "--base-llm", **source.options)


def test_lora_with_half_of_a_layer_is_refused(tmp_path, refuse):
    source = write_lora(tmp_path / "source", kind="safetensors")
    name = "base_model.model.model.layers.2.mlp.up_proj.lora_B.weight"
    damage.change_tensors(
        source.path / "adapter_model.safetensors", lambda tensors: tensors.pop(name)
    )
    refuse(source.path, "lora_B", r"layers\.2\.mlp\.up_proj", **source.options)


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"peft_type": "IA3"}, "IA3"),
        ({"bias": "all"}, "bias"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
    ],
)
def test_adapter_of_another_kind_is_refused(fields, word, tmp_path, refuse):
    source = write_lora(tmp_path / "source")
    damage.change_json(source.path / "adapter_config.json", lambda c: c.update(fields))
    refuse(source.path, word, **source.options)


def test_adapter_whose_settings_are_cut_off_is_refused_by_name(tmp_path, refuse):
    source = write_lora(tmp_path / "source")
    damage.truncate(source.path / "adapter_config.json", 20)
    refuse(source.path, r"adapter_config\.json is no JSON", "get it again", **source.options)


def test_fork_with_unknown_names_lists_them_beside_the_expected(tmp_path, refuse):
    source = write_fork(tmp_path / "source", names="other")
    words = [
        *("model.layers.1.ffn_adapter.W_e", "model.lexp.H0_W_2d", "expected"),
        *("model.language_model.layers.1.language_expert.encoder_weight", "--rules"),
    ]
    refuse(source.path, *words, layout="fork", expert_fields={"visual_expert": "both"})


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        ("[[rename]\n", ["rules.toml", "TOML"]),
        ("[[rename]]\nfrom = 'model\\.(lexp'\nto = 'x'\n", ["model", "regular expression"]),
        ("[[rename]]\nfrom = 'a'\nto = 'b\\1'\n", ["group"]),
        ("[[rename]]\nfrom = 'a'\n", ["to", "drop"]),
        ("[[rename]]\nfrom = 'a'\nto = 'b'\noperations = ['turn']\n", ["turn", "transpose"]),
        ("[rules]\n", ["rules"]),
        ("[experts]\nexpert_width = 3\n", ["expert_width"]),
    ],
)
def test_rules_that_are_not_understood_are_refused(rules, words, tmp_path, refuse):
    source = write_fork(tmp_path / "source", names="other")
    (tmp_path / "rules.toml").write_text(rules)
    refuse(source.path, *words, rules=tmp_path / "rules.toml")


def test_rules_with_the_wrong_shape_are_refused(tmp_path, refuse):
    source = write_fork(tmp_path / "source", names="other")
    rules = (tmp_path / "source-rules.toml").read_text()
    (tmp_path / "rules.toml").write_text(rules.replace("reshape: 5, 6, 20", "reshape: 5, 7, 20"))
    refuse(source.path, "H0_W_2d", "reshape: 5, 7, 20", rules=tmp_path / "rules.toml")


OPTIONS = [
    ({"dtype": "int8"}, ["dtype", "int8", "float16"]),
    ({"to": "gguf"}, ["to", "gguf", "llava-hf"]),
    ({"layout": "idefics"}, ["layout", "idefics", "llava-hf"]),
    ({"max_shard_size": "five"}, ["five"]),
    ({"experts": "nowhere.safetensors"}, ["nowhere.safetensors"]),
    ({"to": "llava", "experts": "init"}, ["experts", "--to llava"]),
    ({"vision_tower": "./nowhere"}, ["nowhere"]),
    ({"rules": "nowhere.toml"}, ["nowhere.toml"]),
]


@pytest.mark.parametrize(("options", "words"), OPTIONS, ids=str)
def test_wrong_option_is_refused(options, words, tmp_path, refuse):
    source = write_original(tmp_path / "source")
    refuse(source.path, *words, **options)


def test_source_that_is_not_there_is_refused(tmp_path, refuse):
    refuse(tmp_path / "nowhere", "nowhere")
    (tmp_path / "empty").mkdir()
    refuse(tmp_path / "empty", "empty")


def test_destination_that_is_not_empty_is_refused(tmp_path, refuse):
    source = write_original(tmp_path / "source")
    (tmp_path / "result").mkdir()
    (tmp_path / "result" / "notes.txt").write_text("mine")
    refuse(source.path, "result", "not empty", "--overwrite")


def test_destination_that_is_a_file_is_refused(tmp_path, refuse):
    source = write_original(tmp_path / "source")
    (tmp_path / "result").write_text("mine")
    refuse(source.path, "result", "is a file")
    refuse(source.path, "result", "is a file", overwrite=True)


def test_empty_destination_is_filled(tmp_path):
    source = write_original(tmp_path / "source")
    (tmp_path / "result").mkdir()
    convert(source.path, tmp_path / "result", verify=False)
    assert (tmp_path / "result" / "model.safetensors").is_file()


def test_destination_is_replaced_only_by_a_complete_result(tmp_path, refuse):
    source = write_original(tmp_path / "source", kind="safetensors")
    (tmp_path / "result").mkdir()
    (tmp_path / "result" / "notes.txt").write_text("mine")
    good = source.path / "model-00002-of-00002.safetensors"
    content = good.read_bytes()
    damage.put_value("model.norm.weight", float("nan"))(source.path)
    refuse(source.path, "NaN", overwrite=True)
    assert list_names(tmp_path / "result") == ["notes.txt"]
    good.write_bytes(content)
    convert(source.path, tmp_path / "result", overwrite=True, verify=False)
    assert "notes.txt" not in list_names(tmp_path / "result")
    assert list_names(tmp_path) == ["result", "source", "source-clip"]


@pytest.mark.parametrize("place", ["source", "source/inside", ".", "source-clip", "source-clip/in"])
def test_destination_in_or_around_a_source_is_refused(place, tmp_path, refuse):
    source = write_original(tmp_path / "source")
    refuse(source.path, "read", destination=tmp_path / place, overwrite=True)


def test_destination_that_is_the_base_is_refused(tmp_path, refuse):
    source = write_lora(tmp_path / "source")
    llm = tmp_path / "source-llm"
    refuse(source.path, "read", destination=llm, overwrite=True, **source.options)


def test_destination_behind_a_link_to_the_source_is_refused(tmp_path, refuse):
    source = write_own(tmp_path / "source")
    (tmp_path / "link").symlink_to(source.path)
    refuse(source.path, "read", destination=tmp_path / "link", overwrite=True)


# Where the first shard, and where the second one is cut off.
@pytest.mark.parametrize(("limit", "shard_size"), [(20_000, "5GB"), (70_000, "60KB")])
def test_full_disk_leaves_nothing(limit, shard_size, tmp_path, streams):
    source = write_original(tmp_path / "source")
    before = hash_tree(tmp_path)
    words = spell(source.path, tmp_path / "result", max_shard_size=shard_size)
    if shard_size != "5GB":
        # Small shards fit; one of the files that come after them is the one that does not.
        words += ["--experts", "init"]
    code, out, err = run_child("limit_files", streams, limit, *words)
    assert (code, out) == (2, ""), err
    assert len(err.splitlines()) == 1, err
    assert "File too large" in err
    assert hash_tree(tmp_path) == before


def test_disk_without_room_is_refused_before_anything_is_written(tmp_path, refuse, monkeypatch):
    import shutil

    from hyperllava_hf.conversion import shard_writer

    source = write_original(tmp_path / "source")
    usage = shutil.disk_usage(tmp_path)._replace(free=10_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    monkeypatch.setattr(shard_writer, "write_file", lambda *args, **kw: pytest.fail("written"))
    refuse(source.path, "10,000 bytes free")


def test_source_without_write_permission_converts(tmp_path):
    source = write_original(tmp_path / "source")
    for path in source.path.iterdir():
        path.chmod(0o444)
    source.path.chmod(0o555)
    try:
        before = hash_tree(tmp_path)
        convert(source.path, tmp_path / "result", verify=False)
        assert hash_others(tmp_path, "result") == before
    finally:
        source.path.chmod(0o755)
