"""Names that commands offer. Importing this module costs no torch."""

#: Target -> the engines that read it.
TARGETS = {
    "gguf": "llama.cpp, Ollama and what is built on them",
    "decilm": "vLLM and TensorRT-LLM, and mlx-lm where head counts allow; padded with zeros",
    "stock": "everything that reads plain Llama, Mistral, Qwen2 or Qwen3; needs the same sizes in every layer",
    "mlx": "mlx-lm, padded only where its unpadded layout has no place for the model",
}
#: Types of the weights in a GGUF file.
GGUF_TYPES = ("f32", "f16", "bf16", "q8_0")
