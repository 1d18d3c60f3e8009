import pytest
import timm
import torch
from torch import nn
from torchvision import models

from breakhis_pl.models.backbones import build_network
from breakhis_pl.models.stages import head_of, layer_groups, stages


def names_by_stage(network: nn.Module) -> list[set[str]]:
    """The first two parts of the names in each stage."""
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    return [{".".join(names[id(each)].split(".")[:2]) for each in stage} for stage in stages(network)]


def test_a_residual_network_has_a_stem_four_stages_and_a_head() -> None:
    found = names_by_stage(build_network("resnet18", dropout=0.0))
    assert found[0] == {"conv1.weight", "bn1.weight", "bn1.bias"}
    assert found[1:5] == [{f"layer{n}.0", f"layer{n}.1"} for n in (1, 2, 3, 4)]
    assert found[5] == {"fc.0", "fc.3", "fc.5"}
    assert len(found) == 6


@pytest.mark.parametrize(
    ("network", "n_stages"),
    [
        (models.mobilenet_v3_small, 14),  # 13 blocks of features, classifier
        (models.densenet121, 9),  # stem, four blocks, three transitions, classifier
        (models.convnext_tiny, 9),  # four times down and blocks, classifier
        (models.vit_b_16, 14),  # patches, twelve blocks, head
        (lambda: timm.create_model("vit_tiny_patch16_224"), 14),
        (lambda: timm.create_model("convnext_atto"), 6),  # stem, four stages, head
    ],
)
def test_stages_are_found_in_networks_of_either_library(network: object, n_stages: int) -> None:
    with torch.device("meta"):
        built = network()  # type: ignore[operator]
    found = stages(built)
    assert len(found) == n_stages
    together = [id(each) for stage in found for each in stage]
    assert sorted(together) == sorted(id(each) for each in built.parameters())
    assert {id(each) for each in found[-1]} == {id(each) for each in head_of(built).parameters()}


def test_what_lies_in_no_layer_belongs_to_the_first_stage() -> None:
    with torch.device("meta"):
        network = timm.create_model("vit_tiny_patch16_224")
    first = {id(each) for each in stages(network)[0]}
    assert {id(network.cls_token), id(network.pos_embed), id(network.patch_embed.proj.weight)} <= first


def test_rates_fall_from_the_head_down_and_what_is_not_trained_is_left_out() -> None:
    network = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 2))
    groups = layer_groups(network, decay=0.5)
    assert [group.rate for group in groups] == [1.0, 0.5, 0.25]
    assert groups[0].parameters == tuple(network[2].parameters())
    network[1].requires_grad_(requires_grad=False)
    assert [group.rate for group in layer_groups(network, decay=0.5)] == [1.0, 0.25]


def test_a_network_without_layers_is_refused() -> None:
    with pytest.raises(ValueError, match="ReLU has no layer with parameters"):
        stages(nn.ReLU())
