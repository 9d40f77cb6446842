"""Scores of the real KoBEST are the harness's own. KO_DATA names the folder of kobest/, by default ../shared/data."""

import os
from pathlib import Path

import pytest

from stages import evaluate, fetch_model
from stages.lib.core.artifacts import read_jsonl, read_table
from stages.lib.core.params import read_params
from stages.lib.evaluation.kobest import KOBEST
from stages.lib.evaluation.metrics import scores_by_task
from tests.harness import ask_the_harness
from tests.project import ROOT

DATA = Path(os.environ.get("KO_DATA", ROOT.parent / "shared" / "data"))
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason=f"no real KoBEST: KO_DATA names no folder ({DATA})")


@pytest.fixture(scope="module")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-NeoX of one layer, hardly trained. Many prompts are longer than its 512 tokens."""
    folder = tmp_path_factory.mktemp("model") / "base"
    params = read_params(fetch_model.Params, ROOT / "params.yaml").model_dump(by_alias=True)
    base = params["fetch_model"]["base"]
    base["small"] |= {"vocabulary": 2048, "layers": 1, "width": 32, "positions": 512, "steps": 2}
    params = fetch_model.Params.model_validate({"threads": 1, "fetch_model": {"base": base}})
    fetch_model.fetch_model(params, role="base", inputs=ROOT / "data/pretrain", model=folder)
    return folder


WHOLE = pytest.param(None, [0, 1, 2, 5, 10, 50], marks=pytest.mark.slow, id="all items")


@pytest.mark.parametrize(("count", "shots"), [pytest.param(25, [0, 5], id="some items"), WHOLE])
def test_the_scores_of_kobest_are_those_of_the_harness_itself(
    count: int | None, shots: list[int], small_model: Path, tmp_path: Path
) -> None:
    for path in (DATA / "kobest").glob("*/*.jsonl"):
        out = tmp_path / "kobest" / path.parent.name / path.name
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:count]))
    settings = {"tasks": list(KOBEST), "shots": shots, "batch": 16, "dtype": "fp32", "quantize": None, "chat": False}
    params = evaluate.Params.model_validate({"threads": 1, "evaluate": settings})
    evaluate.evaluate(
        params,
        arm="base",
        model=small_model,
        base=small_model,
        benchmark=tmp_path / "kobest",
        checkpoints=tmp_path / "checkpoints",
        evaluation=tmp_path / "eval",
    )
    ours = scores_by_task(read_table(tmp_path / "eval/items.parquet"))

    theirs = ask_the_harness(tmp_path, small_model, tmp_path / "kobest", list(KOBEST), shots, batch=16)
    for name, task in [(shot, task) for shot in theirs for task in KOBEST]:
        found, expected = ours[name][task], theirs[name]["results"][task]
        print(f"{name} {task}: {found}")
        assert found["accuracy"] == pytest.approx(expected["acc,none"], abs=1e-12)
        assert found["macro_f1"] == pytest.approx(expected["f1,none"], abs=1e-12)
        assert found.get("acc_norm") == pytest.approx(expected.get("acc_norm,none"), abs=1e-12)
        assert found["n"] == len(read_jsonl(tmp_path / "kobest" / task / "test.jsonl"))
