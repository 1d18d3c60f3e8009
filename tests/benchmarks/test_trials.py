import json
import sys

import pytest

from benchmarks import trial
from benchmarks.trials import as_markdown, chosen, main
from benchmarks.variants import Variant, cpu_variants, cuda_variants

A, B, C = (Variant(group, name, {}) for group, name in (("format", "first"), ("format", "second"), ("memory", "kept")))


def test_a_word_takes_its_variants_and_what_they_are_compared_with() -> None:
    assert chosen([A, B, C], ["second"]) == [A, B]
    assert chosen([A, B, C], ["memory"]) == [C]
    assert chosen([A, B, C], None) == [A, B, C]


def test_the_table_compares_with_the_first_of_the_group_round_by_round() -> None:
    answers = [
        (A, [{"rate": 10.0, "cold_s": 1.0}, {"rate": 1.0, "cold_s": 1.0}]),
        (B, [{"rate": 20.0, "cold_s": 3.0}, {"rate": 2.0, "cold_s": 3.0}]),
    ]
    last = as_markdown(answers).splitlines()[-1]
    assert last == "| format | second | 11.0 | 2.00 to 20.0 | 2.00 | 3.00 |"


def test_every_variant_has_a_name_of_its_own() -> None:
    everything = [*cpu_variants([]), *cuda_variants()]
    assert len({(each.group, each.name, each.settings["device"]) for each in everything}) == len(everything)


def test_variants_are_listed_without_trying_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list", "--only", "gathering"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "gathering, 64 px: index_select"


SMALL = {
    "train": {"size": 32, "batch": 2},
    "forward": {"size": 32, "batch": 2},
    "augmentation": {"size": 32, "batch": 2},
    "gather": {"size": 8, "batch": 2},
    "decoder": {},
    "resize": {"size": 16},
    "metrics": {},
}


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(variant.settings, id=f"{variant.group}: {variant.name}")
        for variant in {
            json.dumps([each.settings["what"], each.settings.get("by"), each.settings.get("optimizer")]): each
            for each in cpu_variants([])
            if each.settings.get("mode") != "compiled"
        }.values()
    ],
)
def test_every_kind_of_trial_gives_a_speed(
    settings: dict[str, object],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    from PIL import Image

    file = tmp_path_factory.mktemp("image") / "image.png"
    Image.new("RGB", (7, 5)).save(file)
    small = {**settings, **SMALL[str(settings["what"])], "seconds": 0.001, "keep_memory": False}
    small |= {"files": [str(file)]} if settings["what"] == "decoder" else {}
    small.pop("threads", None)
    monkeypatch.setattr(sys, "argv", ["trial", json.dumps(small)])
    trial.main()
    assert json.loads(capsys.readouterr().out)["rate"] > 0
