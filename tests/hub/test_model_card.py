"""The generated card: its metadata, its sections, and nothing that was not measured."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from hyperllava_hf.checkpoints import get_bundled_checkpoint
from hyperllava_hf.hub.model_card import build_model_card, find_base_models, gather_facts
from hyperllava_hf.inspection.checkpoint_summary import summarize_checkpoint

REPO = "user/tiny.hyper-llava-0.1"


def read_card(folder: Path, **facts: object) -> ModelCard:
    return ModelCard(build_model_card(folder, REPO, gather_facts(folder, **facts)))


def test_metadata_names_base_relation_licence_and_datasets(folder: Path) -> None:
    bases = ["llava-hf/llava-1.5-7b-hf"]
    data = read_card(folder, base_models=bases, datasets=["user/pictures"]).data.to_dict()
    assert data["base_model"] == bases
    assert data["base_model_relation"] == "finetune"
    assert data["license"] == "llama2"
    assert data["datasets"] == ["user/pictures"]
    assert data["library_name"] == "transformers"
    assert data["pipeline_tag"] == "image-text-to-text"
    assert "custom_code" in data["tags"]
    assert "model-index" not in data


def test_sections_come_in_order(folder: Path) -> None:
    text = read_card(folder).text
    titles = ["Load", "Experts and parameters", "Data", "Evaluation", "Licence"]
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == titles


def test_parameters_and_experts_are_the_checkpoint_s(folder: Path) -> None:
    text = read_card(folder).text
    summary = summarize_checkpoint(str(folder))
    assert f"| visual expert | {summary.parameters['visual expert']:,} |" in text
    assert f"| all | {summary.num_parameters:,} | 100.000% |" in text
    assert "| language experts | 1 of 2: 1 |" in text
    assert "| dimensions | m = 6, r = 4 |" in text


def test_load_pins_a_revision(folder: Path) -> None:
    text = read_card(folder).text
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    compile(code, "card", "exec")
    assert code.count(f'"{REPO}", revision=revision, trust_remote_code=True') == 2


def test_nothing_is_claimed_without_a_result_file(folder: Path) -> None:
    card = read_card(folder)
    assert "Not evaluated: no result file lies beside the weights." in card.text
    assert "What it was made from is not recorded." in card.text
    assert "The licence of the weights is not recorded" in card.text
    assert card.data.to_dict()["license"] == "unknown"


def test_results_of_the_file_reach_table_and_metadata(folder: Path) -> None:
    metrics = Path(get_bundled_checkpoint()) / "metrics.json"
    shutil.copy(metrics, folder)
    card = read_card(folder)
    measured = json.loads(metrics.read_text())
    (index,) = card.data.to_dict()["model-index"]
    assert index["name"] == "tiny.hyper-llava-0.1"
    values = [m["value"] for result in index["results"] for m in result["metrics"]]
    assert values == [family["accuracy"] for family in measured["accuracy"].values()]
    assert measured["command"] in card.text
    assert "Not evaluated: every benchmark that the table does not name." in card.text


def test_base_is_read_from_conversion_and_configuration(folder: Path, edit_json: Callable) -> None:
    manifest = {"source": "llava-hf/llava-1.5-7b-hf", "options": {"base_llm": "outputs/run-1"}}
    (folder / "conversion.json").write_text(json.dumps(manifest))
    name = {"_name_or_path": "lmsys/vicuna-7b-v1.5"}
    edit_json(folder / "config.json", lambda config: config["text_config"].update(name))
    expected = ["llava-hf/llava-1.5-7b-hf", "lmsys/vicuna-7b-v1.5"]
    assert find_base_models(folder) == expected
    assert read_card(folder).data.to_dict()["license"] == "llama2"


def test_facts_of_the_folder_s_own_card_count(folder: Path) -> None:
    (folder / "README.md").write_text("---\nlicense: apache-2.0\nbase_model: user/own\n---\nHi\n")
    facts = gather_facts(folder)
    assert facts.base_models == ["user/own"]
    assert facts.terms is not None
    assert facts.terms.identifier == "apache-2.0"


def test_broken_card_of_the_folder_is_named(folder: Path) -> None:
    (folder / "README.md").write_text("---\nlicense: [\n---\nHi\n")
    with pytest.raises(ValueError, match=r"metadata that cannot be read in .*README\.md"):
        gather_facts(folder)
