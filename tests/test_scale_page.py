"""The page about scale shows what its script computes, for networks that are what they are called."""

from pathlib import Path

from support.modules import module_at

ROOT = Path(__file__).parents[1]
scale = module_at(ROOT / "benchmarks" / "scale.py")


def test_the_page_shows_the_tables():
    assert scale.tables() in (ROOT / "docs" / "scale.md").read_text()


def test_the_networks_have_their_published_sizes():
    assert [model.parameters for model in scale.MODELS] == [6_738_415_616, 68_976_648_192]
