from .embedder import TextEmbedder as TextEmbedder
from .encoder import compile_encoder as compile_encoder
from .retriever import Retriever as Retriever
from .tokenizer import Tokenizer as Tokenizer
