"""Several processes of one program at the cost of one import of TensorFlow: it is imported, not used, and then the process forks.

forked.py COUNT PROGRAM ARGUMENTS: a child for each index, in whose environment `JOB_COMPLETION_INDEX` says it; what it writes goes to
INDEX.err. PROGRAM is a file, or -c and a text. The exit codes are printed.
"""

import json
import os
import runpy
import sys

import keras  # noqa: F401 - and TensorFlow with it


def run(index, program, *arguments):
    os.environ["JOB_COMPLETION_INDEX"] = str(index)
    said = os.open(f"{index}.err", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(said, stream)
    if program == "-c":
        exec(arguments[0], {"__name__": "__main__"})
    else:
        sys.argv = [program, *arguments]
        runpy.run_path(program, run_name="__main__")


def main(count, *command):
    children = []
    for index in range(int(count)):
        child = os.fork()
        if child == 0:
            return run(index, *command)  # and ends as any program does
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    print(json.dumps(codes), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
