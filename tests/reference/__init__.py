"""The methods again, in plain PyTorch and NumPy, that the library is compared with; they share no
code with it.
"""
