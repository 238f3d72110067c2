"""What `bench gpu-util -- COMMAND` puts into the Python processes of that command.

`sitecustomize.py` is started by Python itself, in every process; `watcher.py`, with `steps.py` and `describing.py`, is
loaded by it where torch's DataLoader or fastload's Loader is imported. They know the standard library and torch only:
the command may run in another environment, where fastload is not installed, with an older Python. `records.py` reads,
in `bench`'s own process, what they wrote.
"""
