import subprocess
import sys

import pytest

import stillroom.blocks


def test_every_name_is_exported_once_and_there():
    assert set(stillroom.blocks.__all__) == set(stillroom.blocks._EXPORTS)
    assert len(stillroom.blocks.__all__) > 60
    for name in stillroom.blocks.__all__:
        assert getattr(stillroom.blocks, name) is not None


def test_the_package_loads_without_torch():
    code = "import sys, stillroom.blocks; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_unknown_name_is_answered_with_all_names():
    with pytest.raises(AttributeError, match=r"no attribute 'Tap'; it has .*Taps"):
        _ = stillroom.blocks.Tap
