"""Checkpoints of LLaVA forks with experts: the original layout, and expert keys of their choice."""

from tests.conversion.layout_writers import FORK_KEYS, rename, write_original
from tests.conversion.tiny_llava import EXPERTS, draw_experts

# Every name differs, matrices are transposed, stacks of matrices lie flat.
OTHER_NAMES = (
    (r"model\.multi_modal_projector\.visual_expert\.(first|second)\.(.+)", r"model.vexp.\1.\2"),
    (
        r"model\.multi_modal_projector\.visual_expert\.hypernetwork\.heads\.(\d)\.(.+)",
        r"model.vexp.H\1_\2",
    ),
    (r"model\.multi_modal_projector\.visual_expert\.hypernetwork\.(hidden_.+)", r"model.vexp.\1"),
    (r"model\.language_model\.language_expert\.heads\.(\d)\.(.+)", r"model.lexp.H\1_\2"),
    (r"model\.language_model\.language_expert\.(hidden_.+)", r"model.lexp.\1"),
    (
        r"model\.language_model\.layers\.(\d+)\.language_expert\.(.+)",
        r"model.layers.\1.ffn_adapter.\2",
    ),
)
OTHER_LEAVES = (
    ("encoder_weight", "W_e"),
    ("encoder_bias", "b_e"),
    ("hidden_weight", "W_1"),
    ("hidden_bias", "b_1"),
    ("weight_down", "W_2d"),
    ("weight_up", "W_2u"),
    ("bias_down", "b_d"),
    ("bias_up", "b_u"),
)
RULES = r"""
[experts]
visual_expert = "both"
expert_input_dim = 5
expert_hidden_dim = 3

[[rename]]
from = 'model\.vexp\.(first|second)\.W_e'
to = 'model.multi_modal_projector.visual_expert.\1.encoder_weight'
operations = ["transpose"]
[[rename]]
from = 'model\.vexp\.(first|second)\.b_e'
to = 'model.multi_modal_projector.visual_expert.\1.encoder_bias'
[[rename]]
from = 'model\.vexp\.(first|second)\.b_d'
to = 'model.multi_modal_projector.visual_expert.\1.bias_down'
operations = ["transpose"]
[[rename]]
from = 'model\.vexp\.(first|second)\.b_u'
to = 'model.multi_modal_projector.visual_expert.\1.bias_up'
operations = ["transpose"]
[[rename]]
from = 'model\.vexp\.W_1'
to = 'model.multi_modal_projector.visual_expert.hypernetwork.hidden_weight'
operations = ["transpose"]
[[rename]]
from = 'model\.vexp\.b_1'
to = 'model.multi_modal_projector.visual_expert.hypernetwork.hidden_bias'
[[rename]]
from = 'model\.vexp\.H(\d)_b_d'
to = 'model.multi_modal_projector.visual_expert.hypernetwork.heads.\1.bias_down'
operations = ["transpose"]
[[rename]]
from = 'model\.vexp\.H(\d)_b_u'
to = 'model.multi_modal_projector.visual_expert.hypernetwork.heads.\1.bias_up'
operations = ["transpose"]
[[rename]]
from = 'model\.vexp\.H0_W_2d'
to = 'model.multi_modal_projector.visual_expert.hypernetwork.heads.0.weight_down'
operations = ["reshape: 5, 6, 20"]
[[rename]]
from = 'model\.vexp\.H1_W_2d'
to = 'model.multi_modal_projector.visual_expert.hypernetwork.heads.1.weight_down'
operations = ["reshape: 5, 6, 24"]
[[rename]]
from = 'model\.vexp\.H(\d)_W_2u'
to = 'model.multi_modal_projector.visual_expert.hypernetwork.heads.\1.weight_up'
operations = ["reshape: 5, 3, 24"]
[[rename]]
from = 'model\.lexp\.W_1'
to = 'model.language_model.language_expert.hidden_weight'
operations = ["transpose"]
[[rename]]
from = 'model\.lexp\.b_1'
to = 'model.language_model.language_expert.hidden_bias'
[[rename]]
from = 'model\.lexp\.H0_b_d'
to = 'model.language_model.language_expert.heads.0.bias_down'
operations = ["transpose"]
[[rename]]
from = 'model\.lexp\.H0_b_u'
to = 'model.language_model.language_expert.heads.0.bias_up'
operations = ["transpose"]
[[rename]]
from = 'model\.lexp\.H0_W_2d'
to = 'model.language_model.language_expert.heads.0.weight_down'
operations = ["reshape: 5, 6, 24"]
[[rename]]
from = 'model\.lexp\.H0_W_2u'
to = 'model.language_model.language_expert.heads.0.weight_up'
operations = ["transpose", "reshape: 5, 3, 24"]
[[rename]]
from = 'model\.layers\.(\d+)\.ffn_adapter\.W_e'
to = 'model.language_model.layers.\1.language_expert.encoder_weight'
operations = ["transpose"]
[[rename]]
from = 'model\.layers\.(\d+)\.ffn_adapter\.b_e'
to = 'model.language_model.layers.\1.language_expert.encoder_bias'
[[rename]]
from = 'model\.layers\.(\d+)\.ffn_adapter\.b_d'
to = 'model.language_model.layers.\1.language_expert.bias_down'
operations = ["transpose"]
[[rename]]
from = 'model\.layers\.(\d+)\.ffn_adapter\.b_u'
to = 'model.language_model.layers.\1.language_expert.bias_up'
operations = ["transpose"]
[[rename]]
from = 'model\.layers\.\d+\.ffn_adapter\.steps'
drop = "a counter of the fork's training"
"""


def rename_expert(name):
    """The other fork's name of one expert's tensor."""
    *_, leaf = name.split(".")
    (other,) = rename({name: None}, OTHER_NAMES)
    return other.removesuffix(leaf) + dict(OTHER_LEAVES)[leaf]


def in_other_names(experts):
    """The other fork's expert keys, with its orientation of each matrix."""
    import torch

    renamed = {}
    for name, tensor in experts.items():
        other = rename_expert(name)
        if tensor.ndim == 2:
            tensor = tensor.T
        elif tensor.ndim == 3:
            tensor = tensor.reshape(-1, tensor.shape[-1])
        # One of them both flat and transposed: operations come one after the other.
        renamed[other] = (tensor.T if other == "model.lexp.H0_W_2u" else tensor).contiguous()
    for number in (1, 2):
        renamed[f"model.layers.{number}.ffn_adapter.steps"] = torch.tensor(12)
    return renamed


def write_fork(folder, names="default", **options):
    """names: "default" (ours under the original's prefixes) or "other" (with a rules file)."""
    experts = draw_experts()
    extra = rename(experts, FORK_KEYS) if names == "default" else in_other_names(experts)
    source = write_original(folder, model_type="llava_llama", extra=extra, **options)
    source.layout, source.experts = "fork", experts
    if names == "default":
        source.options["expert_fields"] = dict(EXPERTS)
    else:
        rules = folder.with_name(folder.name + "-rules.toml")
        rules.write_text(RULES, encoding="utf-8")
        source.options["rules"] = str(rules)
    return source
