//! Datasets, decoding, augmentation, sampling, prefetch.
