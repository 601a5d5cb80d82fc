//! Contrastive objectives: embeddings in, loss and exact gradients out. Knows no files.
