"""MEND's hypernetwork: what it computes, how it is trained, and the files of trained ones."""
