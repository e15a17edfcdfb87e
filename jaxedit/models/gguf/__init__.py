"""GGUF files of llama.cpp, as the models they hold."""
