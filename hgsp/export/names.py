"""Names that commands offer. Importing this module costs no torch."""

#: Target -> the engines that read it.
TARGETS = {
    "gguf": "llama.cpp, Ollama and what is built on them",
    "decilm": "vLLM, TensorRT-LLM and MLX without custom code",
    "stock": "everything that reads plain Llama, Mistral, Qwen2 or Qwen3; needs the same sizes in every layer",
    "mlx": "mlx-lm, without padding",
}
#: Types of the weights in a GGUF file.
GGUF_TYPES = ("f32", "f16", "bf16", "q8_0")
