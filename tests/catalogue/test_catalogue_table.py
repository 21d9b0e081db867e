"""The bundled table: it is complete, parameters are counted, and models are found by usual spellings."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from support.paths import ROOT
from support.scripts import load_script

from axmem_trace.catalogue import find_base_model, list_base_models
from axmem_trace.catalogue.table import load_aliases, load_models, nearest_ids

SHARED_CONFIGS = ROOT.parent / "shared" / "model_configs"
needs_shared = pytest.mark.skipif(not SHARED_CONFIGS.is_dir(), reason="../shared/model_configs is not here")

FAST = """
    openai-community/gpt2 codellama/CodeLlama-34b-hf tiiuae/falcon-7b Qwen/Qwen3-30B-A3B google/gemma-3-1b-it
    ibm-research/PowerLM-3b microsoft/Phi-3-mini-4k-instruct
    """.split()
NEEDS_MORE_THAN_TRANSFORMERS = {"gemma3n"}  # a timm vision tower, which needs torchvision


def known_types() -> set[str]:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    return set(CONFIG_MAPPING)


def built_parameters(name: str) -> int:
    """The number of unique parameters of the class in `architectures`, built on the meta device."""
    import torch
    import transformers

    config = dict(find_base_model(name, hub="never").config)
    config.pop("quantization_config", None)
    config_class = transformers.AutoConfig.for_model(config.pop("model_type"), **config)
    # a class of remote code (ExaoneForCausalLM): transformers builds the same model with its own class
    model_class = getattr(transformers, config["architectures"][0], None)
    with torch.device("meta"):
        if model_class:
            model = model_class._from_config(config_class)
        else:
            model = transformers.AutoModelForCausalLM.from_config(config_class)
    return sum(parameter.numel() for parameter in model.parameters())


def test_every_entry_names_its_architecture():
    for name, record in load_models().items():
        assert isinstance(record["config"]["model_type"], str), name
        assert record["config"]["architectures"], name
        assert record["parameters"] > 0, name
        assert record["trust"] in {"exact json", "derived", "recalled"}, name
        # Published totals may count a tied head twice, and layers of multi-token prediction, which are never built.
        text = record["config"].get("text_config", record["config"])
        head = text.get("vocab_size", 0) * text.get("hidden_size", 0)
        counts = (record["parameters"], record["parameters"] + head)
        assert min(abs(count / record["published"] - 1) for count in counts) < 0.06, name


def test_aliases_point_to_entries_and_hide_none():
    models = load_models()
    for name, alias in load_aliases().items():
        assert alias.of in models, name
        assert name not in models, name


def test_a_model_is_in_one_table_only():
    tables = [
        json.loads((ROOT / "axmem_trace" / "catalogue" / name).read_text()) for name in ("models.json", "recalled.json")
    ]
    assert not tables[0].keys() & tables[1].keys()


def test_ids_differ_by_more_than_letter_case():
    ids = [*load_models(), *load_aliases()]
    assert len({name.casefold() for name in ids}) == len(ids)


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("QWEN/qwen3-8B", "Qwen/Qwen3-8B"),
        ("meta-llama/llama-3.1-8b-instruct", "meta-llama/Llama-3.1-8B-Instruct"),
        ("OpenChat/OpenChat-3.5-0106", "openchat/openchat-3.5-0106"),
    ],
)
def test_letter_case_does_not_matter(written, name):
    assert find_base_model(written, hub="never").name == name


def test_a_configuration_that_is_not_a_copy_has_a_caution():
    assert find_base_model("Qwen/Qwen3-8B", hub="never").caution == ""
    recalled = find_base_model("01-ai/Yi-6B-Chat", hub="never").caution  # an alias of what is recalled
    # 2 x 64000 x 4096 + 32 x (2 x 4096^2 + 2 x 4096 x 512 + 3 x 4096 x 11008 + 2 x 4096) + 4096 = 6,061,035,520
    assert "config.json of 01-ai/Yi-6B is not a copy" in recalled
    assert "written from memory" in recalled
    assert "6,061,035,520 parameters, exactly as published" in recalled
    # 3,029,337,472 / 3,000,000,000 = 1.0098
    derived = find_base_model("ai21labs/AI21-Jamba-Reasoning-3B", hub="never").caution
    assert "documented fields" in derived
    assert "3,029,337,472 parameters, 1.0% more than published" in derived


def test_the_list_is_sorted_and_includes_aliases():
    entries = list_base_models()
    assert [entry.id for entry in entries] == sorted((entry.id for entry in entries), key=str.casefold)
    llama = next(entry for entry in entries if entry.id == "meta-llama/Llama-3.1-8B")
    # 2 x 128256 x 4096 + 32 x (2 x 4096^2 + 2 x 4096 x 1024 + 3 x 4096 x 14336 + 2 x 4096) + 4096 = 8,030,261,248
    assert llama.parameters == 8_030_261_248
    assert llama.model_type == "llama"
    assert "NousResearch/Meta-Llama-3.1-8B" in llama.aliases


@pytest.mark.parametrize("name", FAST)
def test_counts_of_built_models(name):
    assert built_parameters(name) == load_models()[name]["parameters"]


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(load_models()))
def test_counts_of_all_built_models(name):
    model_type = load_models()[name]["config"]["model_type"]
    if model_type in NEEDS_MORE_THAN_TRANSFORMERS:
        pytest.importorskip("torchvision")
    if model_type not in known_types():
        pytest.skip(f"the installed transformers has no {model_type}")
    assert built_parameters(name) == load_models()[name]["parameters"]


@pytest.mark.parametrize(
    ("name", "vocab_size"),
    [
        # Code Llama's infilling tokens are in 7b and 13b, not in 34b nor in the Python versions.
        ("codellama/CodeLlama-7b-hf", 32016),
        ("codellama/CodeLlama-13b-Instruct-hf", 32016),
        ("codellama/CodeLlama-7b-Python-hf", 32000),
        ("codellama/CodeLlama-34b-hf", 32000),
        ("codellama/CodeLlama-34b-Instruct-hf", 32000),
        ("codellama/CodeLlama-70b-hf", 32016),
        ("mistralai/Mistral-7B-Instruct-v0.2", 32000),
        ("mistralai/Mistral-7B-Instruct-v0.3", 32768),
        ("mistralai/Mixtral-8x22B-Instruct-v0.1", 32768),
        ("teknium/OpenHermes-2.5-Mistral-7B", 32002),
        ("tiiuae/falcon-7b", 65024),
        ("openlm-research/open_llama_3b", 32000),
        ("openlm-research/open_llama_3b_v2", 32000),
        ("Qwen/Qwen2.5-7B-Instruct", 152064),
        ("Qwen/Qwen2.5-3B-Instruct", 151936),
        # added tokens of fine-tunes: ChatML's two, or more
        ("openchat/openchat_3.5", 32002),
        ("NousResearch/Nous-Hermes-2-Mistral-7B-DPO", 32002),
        ("NousResearch/Hermes-2-Pro-Mistral-7B", 32032),
        ("cognitivecomputations/dolphin-2.6-mistral-7b", 32001),
        ("Intel/neural-chat-7b-v3-3", 32000),
        ("cognitivecomputations/dolphin-2.9-llama3-8b", 128258),
        ("Sao10K/L3-8B-Stheno-v3.2", 128256),
        ("tiiuae/Falcon-H1-7B-Base", 130048),
        ("tiiuae/Falcon-H1-7B-Instruct", 130049),
    ],
)
def test_vocabulary(name, vocab_size):
    assert find_base_model(name, hub="never").config["vocab_size"] == vocab_size


def test_prequantised_aliases_carry_their_quantisation():
    nf4 = find_base_model("unsloth/Meta-Llama-3.1-8B-bnb-4bit", hub="never").config["quantization_config"]
    assert (nf4["quant_method"], nf4["load_in_4bit"], nf4["bnb_4bit_quant_type"]) == ("bitsandbytes", True, "nf4")
    assert nf4["bnb_4bit_use_double_quant"] is True
    gptq = find_base_model("TheBloke/Llama-2-7B-GPTQ", hub="never").config["quantization_config"]
    assert (gptq["quant_method"], gptq["bits"], gptq["group_size"]) == ("gptq", 4, 128)
    assert "quantization_config" not in find_base_model("meta-llama/Llama-2-7b-hf", hub="never").config
    assert "quantization_config" not in find_base_model("unsloth/gpt-oss-20b-BF16", hub="never").config


def test_an_untied_fine_tune_keeps_its_own_head():
    # Published: 1,777,088,000 = Qwen2.5-1.5B's 1,543,714,304 + an untied head of 151,936 x 1,536 = 233,373,696.
    assert built_parameters("deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B") == 1_777_088_000


def test_a_found_configuration_is_a_copy():
    first = find_base_model("Qwen/Qwen3-8B", hub="never").config
    assert isinstance(first, dict)
    first["hidden_size"] = 1
    assert find_base_model("Qwen/Qwen3-8B", hub="never").config["hidden_size"] == 4096


def test_nearest_ids_compare_the_name_part():
    assert nearest_ids("somebody/Llama-3.1-8B")[0].rpartition("/")[2] == "Llama-3.1-8B"
    assert nearest_ids("zzzzzzzzzzzzzzzzzzz") == []


def test_nearest_ids_begin_with_the_most_similar_name_and_handle_a_suffix():
    assert nearest_ids("meta-lama/Llama-3.1-8B")[0] == "meta-llama/Llama-3.1-8B"
    assert nearest_ids("Qwen/Qwen3-8b-Instruct")[0] == "Qwen/Qwen3-8B"
    assert nearest_ids("mixtral-8x7b")[0] == "mistralai/Mixtral-8x7B-v0.1"


def test_loading_is_fast():
    program = (
        "import time; from axmem_trace.catalogue import table; start = time.perf_counter(); table.load_models();"
        "table.load_aliases(); print(time.perf_counter() - start)"
    )
    seconds = [float(subprocess.check_output([sys.executable, "-c", program], cwd=ROOT)) for _ in range(3)]
    assert min(seconds) < 0.05


def test_lookup_imports_no_torch():
    program = (
        "import sys; from axmem_trace.catalogue import find_base_model; import axmem_trace.catalogue.gpus;"
        "find_base_model('tiiuae/falcon-7b', hub='never');"
        "print([name for name in ('torch', 'transformers', 'huggingface_hub') if name in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", program], cwd=ROOT, text=True).strip() == "[]"


@needs_shared
def test_package_data_equals_the_output_of_the_script(tmp_path):
    script = load_script("build_catalogue")
    script.write_models(script.read_models(SHARED_CONFIGS), tmp_path / "models.json")
    assert (tmp_path / "models.json").read_text() == script.OUTPUT.read_text()


@needs_shared
def test_every_shared_model_and_alias_is_found():
    names = [entry["id"] for entry in json.loads((SHARED_CONFIGS / "_index.json").read_text())]
    aliases = json.loads((SHARED_CONFIGS / "_aliases.json").read_text())
    for name in [*names, *aliases]:
        assert find_base_model(name, hub="never").name == name
    for name, alias in aliases.items():
        assert load_aliases()[name].of == alias["same_architecture_as"]
