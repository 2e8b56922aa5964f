"""A user's mistake, found in what libraries make of it."""

import pytest

from transform.errors import DataError, PipelineError, SpecError, find_user_error

pytestmark = pytest.mark.once


@pytest.mark.parametrize("error", [SpecError("a cure"), DataError("a cure"), PipelineError("a cure")])
def test_a_users_mistake_is_found_wherever_a_library_put_it(error):
    assert find_user_error(error) == "a cure"
    wrapped = RuntimeError("beam failed")
    wrapped.__cause__ = error
    assert find_user_error(wrapped) == "a cure"
    name = type(error).__name__
    as_text = f"Traceback ...\n  File x\ntransform.errors.{name}: a cure [while running 'BuildRequests']\n"
    assert find_user_error(RuntimeError(as_text)) == "a cure"
    assert find_user_error(RuntimeError("no user's mistake")) is None
