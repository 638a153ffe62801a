"""The contract of an engine, for stores of your own: subclass it, and pytest runs it.

Examples:
    >>> class MyEngine(EngineUnderTest):
    ...     def open_store(self, config, folder):
    ...         return MyStore(folder, config)
    >>> class TestMyStore(MyEngine, StoreTests): ...
    >>> class MyStates(MyEngine, StoreStateMachine): ...
    >>> TestMyStates = MyStates.TestCase
"""

from twinvec_stores.testing.engine import EngineUnderTest
from twinvec_stores.testing.machine import StoreStateMachine
from twinvec_stores.testing.suite import StoreTests

__all__ = ["EngineUnderTest", "StoreStateMachine", "StoreTests"]
