//! Vision transformers (Dosovitskiy et al. 2020, arXiv:2010.11929) under timm's names, with what MoCo v3 changes: fixed
//! positions and its first values (Chen, Xie & He 2021, arXiv:2104.02057, section 5.4; facebookresearch/moco-v3,
//! vits.py).

use super::Vit;
use crate::graph::{EmbedOptions, GraphBuilder, TensorId};

/// Width of the hidden layer behind attention, in widths of a token.
const MLP_RATIO: usize = 4;

/// Adds the backbone and returns the features: the class token behind the last norm.
pub(super) fn backbone(builder: &mut GraphBuilder, vit: Vit) -> TensorId {
    let Vit { width, depth, heads, patch, freeze_patch } = vit;
    let mut x = builder.embed("backbone", EmbedOptions { width, patch, is_frozen: freeze_patch });
    for block in 0..depth {
        let name = |part: &str| format!("backbone.blocks.{block}.{part}");
        let y = builder.layer_norm(&name("norm1"), x);
        // Drawn as three matrices, one for each of queries, keys and values.
        let y = builder.token_linear(&name("attn.qkv"), (y, None), 3 * width, 3);
        let y = builder.attention(y, heads);
        x = builder.token_linear(&name("attn.proj"), (y, Some(x)), width, 1);
        let y = builder.layer_norm(&name("norm2"), x);
        let y = builder.token_linear(&name("mlp.fc1"), (y, None), MLP_RATIO * width, 1);
        let y = builder.gelu(y);
        x = builder.token_linear(&name("mlp.fc2"), (y, Some(x)), width, 1);
    }
    builder.class_token_norm("backbone.norm", x)
}
