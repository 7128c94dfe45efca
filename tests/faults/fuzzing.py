"""What the tests with random input share: settings that repeat themselves, and arbitrary JSON."""

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

fuzz = settings(
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=150,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

NUMBERS = st.one_of(
    st.integers(-3, 40), st.sampled_from((2**31, 2**63, 10**30, 10**400, -(10**400))), st.floats(), st.floats(0, 1)
)
SCALARS = st.one_of(
    st.none(), st.booleans(), NUMBERS, st.text(max_size=8), st.sampled_from(("full", "rest", "\x1b[2J", "\ud800", "\0"))
)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.one_of(st.text(max_size=5), st.sampled_from(("step", "kind", "files"))), inner, max_size=4),
    ),
    max_leaves=10,
)
