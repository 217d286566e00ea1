"""tools/train.py with a limit on the size of the files it writes, so that saving a checkpoint fails as on a full disk."""

import os
import resource
import signal
import sys

from tools.train import main

if __name__ == "__main__":
    limit = int(os.environ["MEGAMESH_TEST_FILE_BYTES"])
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    sys.exit(main())
