"""Names: every accepted spelling leads to one sampler, and nothing else does."""

import subprocess
import sys
from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.engine.errors import UnknownSampler
from deployments.engine.samplers.registry import NAMES, SAMPLERS, SCHEDULES, WEBUI_SAMPLERS, canonical, split

SPELLINGS = [(spelling, name) for name, (label, aliases) in NAMES.items() for spelling in (name, label, *aliases)]


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("DPM++ 2M Karras", "dpmpp_2m_karras"),
        ("Euler a", "euler_a"),
        ("EulerDiscreteScheduler", "euler"),
        ("PLMS", "pndm"),
        ("DPM2 a", "kdpm2_a"),
        ("k_dpmpp_2m_sde_ka", "dpmpp_2m_sde_karras"),
        ("  UniPC ", "unipc"),
        ("UniPC Exponential", "unipc_exponential"),
        ("Euler a SGM Uniform", "euler_a_trailing"),
        ("euler trailing", "euler_trailing"),
        ("Heun Beta", "heun_beta"),
        ("dpm++ 2m-karras", "dpmpp_2m_karras"),
        ("DPM++ SDE Karras", "webui_dpmpp_sde_karras"),
        ("k_dpmpp_2s_a_ka", "webui_dpmpp_2s_a_karras"),
        ("restart", "webui_restart"),
        ("webui Euler a Karras", "webui_euler_a_karras"),
    ],
)
def test_spellings_that_clients_use(spelling: str, name: str) -> None:
    assert canonical(spelling) == name


def _fold(spelling: str) -> str:
    return spelling.strip().lower().replace("_", " ").replace("-", " ")


def test_no_spelling_means_two_samplers() -> None:
    meanings: dict[str, set[str]] = {}
    for spelling, name in SPELLINGS:
        meanings.setdefault(_fold(spelling), set()).add(name)
    assert {spelling: names for spelling, names in meanings.items() if len(names) > 1} == {}


@st.composite
def spelled(draw: st.DrawFn) -> tuple[str, str]:
    """A known spelling in any case, with "_", "-" and " " for each other and blanks around it."""
    spelling, name = draw(st.sampled_from(SPELLINGS))
    changed = (
        draw(st.sampled_from("_- ")) if c in "_- " else draw(st.sampled_from((c.lower(), c.upper()))) for c in spelling
    )
    return draw(st.sampled_from(("", " ", "\t"))) + "".join(changed) + draw(st.sampled_from(("", " ", "\n"))), name


@given(spelled())
def test_case_and_separators_do_not_matter(spelled: tuple[str, str]) -> None:
    spelling, name = spelled
    assert canonical(spelling) == name


@given(spelled())
def test_a_canonical_name_stays_what_it_is(spelled: tuple[str, str]) -> None:
    assert canonical(canonical(spelled[0])) == spelled[1]


@given(st.text())
def test_any_other_text_is_refused_in_one_short_line(text: str) -> None:
    if _fold(text) in {_fold(spelling) for spelling in chain.from_iterable(SPELLINGS)}:
        return
    with pytest.raises(UnknownSampler) as caught:
        canonical(text)
    assert caught.value.field == "scheduler"
    assert "\n" not in caught.value.message
    assert all(name in caught.value.message for name in (*SAMPLERS, *SCHEDULES))


def test_a_name_is_a_sampler_and_perhaps_a_schedule() -> None:
    assert split("dpmpp_2m_sde_karras") == ("dpmpp_2m_sde", "karras")
    assert split("euler_a") == ("euler_a", None)
    assert split("webui_ddim") == ("webui_ddim", None)
    assert split("webui_dpmpp_2m_sde_heun_align_your_steps_11") == ("webui_dpmpp_2m_sde_heun", "align_your_steps_11")
    assert {split(name)[0] for name in NAMES} == SAMPLERS.keys() | WEBUI_SAMPLERS.keys()
    with pytest.raises(UnknownSampler):
        canonical("lcm_karras")


def test_a_long_name_is_not_repeated_in_full() -> None:
    with pytest.raises(UnknownSampler) as caught:
        canonical("x" * 10_000)
    assert len(caught.value.message) < 500


def test_names_need_no_torch() -> None:
    """The front checks requests with them."""
    code = "import sys, deployments.engine.samplers.registry; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
