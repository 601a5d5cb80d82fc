//! The ops over tokens.

use super::{Case, check, cpu, dirty};
use crate::ops::attention::{self, AttentionShape};
use crate::ops::embed::{self, EmbedParameters, EmbedShape};
use crate::ops::gelu;
use crate::ops::layer_norm::{self, LayerNormShape};
use crate::ops::token_linear::{self, TokenLinearInputs, TokenLinearShape};
use kernels::{Cpu, Real};

impl Case for TokenLinearShape {
    fn lengths(&self) -> (Vec<usize>, usize) {
        let Self { tokens, inputs, outputs } = *self;
        (vec![tokens * inputs, outputs * inputs, outputs, tokens * outputs], tokens * outputs)
    }

    fn run<T: Real>(&self, cpu: &Cpu, arrays: &[Vec<T>], d_y: &[T]) -> (Vec<T>, Vec<Vec<T>>) {
        let [x, w, bias, addend] = arrays else { unreachable!("as many as there are lengths") };
        let mut y = dirty(d_y.len());
        let inputs = TokenLinearInputs { x, w, bias, addend: Some(addend) };
        token_linear::forward(cpu, *self, inputs, &mut y);
        let mut plain = dirty(d_y.len());
        let inputs = TokenLinearInputs { addend: None, ..inputs };
        token_linear::forward(cpu, *self, inputs, &mut plain);
        for ((&y, &plain), &addend) in y.iter().zip(&plain).zip(addend) {
            assert!((y - plain - addend).to_f64().abs() < 1e-4, "{y} is not {plain} and {addend}");
        }
        let (mut d_x, mut d_w, mut d_bias) = (dirty(x.len()), dirty(w.len()), dirty(bias.len()));
        token_linear::backward_bias(cpu, d_y, &mut d_bias);
        token_linear::backward_weights(cpu, *self, (x, d_y), &mut d_w);
        token_linear::backward_data(cpu, *self, (d_y, w), &mut d_x);
        (y, vec![d_x, d_w, d_bias, d_y.to_vec()])
    }
}

#[test]
fn linear() {
    check(&TokenLinearShape { tokens: 1, inputs: 1, outputs: 1 });
    check(&TokenLinearShape { tokens: 7, inputs: 5, outputs: 9 });
    check(&TokenLinearShape { tokens: 131, inputs: 3, outputs: 33 });
}

/// So many numbers.
struct Gelu(usize);

impl Case for Gelu {
    fn lengths(&self) -> (Vec<usize>, usize) {
        (vec![self.0], self.0)
    }

    fn run<T: Real>(&self, cpu: &Cpu, arrays: &[Vec<T>], d_y: &[T]) -> (Vec<T>, Vec<Vec<T>>) {
        // Over both tails.
        let x: Vec<T> = arrays[0].iter().map(|&x| x * T::from_f64(4.0)).collect();
        let (mut y, mut d) = (dirty(x.len()), d_y.to_vec());
        gelu::forward(cpu, &x, &mut y);
        gelu::backward(cpu, &x, &mut d);
        d.iter_mut().for_each(|d| *d *= T::from_f64(4.0));
        (y, vec![d])
    }
}

#[test]
fn gelu() {
    for len in [1, 16, 57] {
        check(&Gelu(len));
    }
    let mut y = [0.0_f64; 3];
    gelu::forward(&cpu(1), &[-1.0, 0.0, 2.0], &mut y);
    // torch.nn.functional.gelu in float64.
    let expected: [f64; 3] = [-0.158_655_253_931_457_05, 0.0, 1.954_499_736_103_641_6];
    for (y, expected) in y.iter().zip(expected) {
        assert!((y - expected).abs() < 1e-15, "{y} instead of {expected}");
    }
}

/// So many tokens, and what the gradient of `x` holds before.
struct LayerNorm {
    shape: LayerNormShape,
    tokens: usize,
}

impl Case for LayerNorm {
    fn lengths(&self) -> (Vec<usize>, usize) {
        let LayerNormShape { c, stride } = self.shape;
        (vec![self.tokens * stride, c, c], self.tokens * c)
    }

    fn run<T: Real>(&self, cpu: &Cpu, arrays: &[Vec<T>], d_y: &[T]) -> (Vec<T>, Vec<Vec<T>>) {
        let [x, scale, shift] = arrays else { unreachable!("as many as there are lengths") };
        let mut y = dirty(d_y.len());
        layer_norm::forward(cpu, self.shape, x, (scale, shift), &mut y);
        let (mut d_scale, mut d_shift) = (dirty(scale.len()), dirty(shift.len()));
        let mut d_x = dirty(x.len());
        let affine = (&mut d_scale[..], &mut d_shift[..]);
        layer_norm::backward(cpu, self.shape, (x, scale, d_y), &mut d_x, affine);
        // It adds to what is there.
        d_x.iter_mut().for_each(|d| *d -= T::from_f64(7.0));
        (y, vec![d_x, d_scale, d_shift])
    }
}

#[test]
fn layer_norm() {
    for (tokens, c, stride) in [(1, 3, 3), (7, 16, 16), (70, 5, 5), (3, 32, 32), (4, 6, 18), (3, 16, 80)] {
        check(&LayerNorm { shape: LayerNormShape { c, stride }, tokens });
    }
}

/// Attention over so many images.
struct Attention(AttentionShape, usize);

impl Case for Attention {
    fn lengths(&self) -> (Vec<usize>, usize) {
        let len = self.1 * self.0.tokens * self.0.c;
        (vec![3 * len], len)
    }

    fn run<T: Real>(&self, cpu: &Cpu, arrays: &[Vec<T>], d_y: &[T]) -> (Vec<T>, Vec<Vec<T>>) {
        // Far from uniform attention.
        let x: Vec<T> = arrays[0].iter().map(|&x| x * T::from_f64(3.0)).collect();
        let mut scratch = dirty(cpu.threads() * self.0.scratch_len());
        let (mut y, mut d_x) = (dirty(d_y.len()), dirty(x.len()));
        attention::forward(cpu, self.0, &x, &mut y, &mut scratch);
        attention::backward(cpu, self.0, (&x, d_y), &mut d_x, &mut scratch);
        d_x.iter_mut().for_each(|d| *d *= T::from_f64(3.0));
        (y, vec![d_x])
    }
}

#[test]
fn attention() {
    for (images, tokens, c, heads) in [(1, 1, 4, 2), (3, 5, 6, 3), (2, 19, 8, 1), (1, 34, 4, 4)] {
        check(&Attention(AttentionShape { tokens, c, heads }, images));
    }
}

/// A token that is sure of one other takes its value, and logits as large as those of a diverging run give numbers.
#[test]
fn attention_picks_the_value_of_the_likeliest_key() {
    let shape = AttentionShape { tokens: 2, c: 1, heads: 1 };
    // Query, key and value of either token.
    let x = [100.0_f32, 3.0, 0.25, 100.0, -3.0, 4.0];
    let (mut y, mut scratch) = ([7.0; 2], vec![0.0; shape.scratch_len()]);
    attention::forward(&cpu(1), shape, &x, &mut y, &mut scratch);
    assert_eq!(y, [0.25, 0.25]);
}

/// An embedding of so many images.
struct Embed(EmbedShape, usize);

impl Case for Embed {
    fn lengths(&self) -> (Vec<usize>, usize) {
        let EmbedShape { side, patch, c } = self.0;
        let (patch_len, tokens) = (3 * patch * patch, 1 + side * side);
        let image = side * side * patch_len;
        (vec![self.1 * image, c * patch_len, c, c, tokens * c], self.1 * tokens * c)
    }

    fn run<T: Real>(&self, cpu: &Cpu, arrays: &[Vec<T>], d_y: &[T]) -> (Vec<T>, Vec<Vec<T>>) {
        let [x, weight, bias, class_token, positions] = arrays else { unreachable!("as many as lengths") };
        let mut scratch = dirty(cpu.threads() * self.0.scratch_len(true) + 5);
        let mut y = dirty(d_y.len());
        let parameters = EmbedParameters { weight, bias, class_token, positions };
        embed::forward(cpu, self.0, x, parameters, (&mut y, &mut scratch));
        let (mut d_w, mut d_bias, mut d_token) = (dirty(weight.len()), dirty(bias.len()), dirty(self.0.c));
        embed::backward_class_token(self.0, d_y, &mut d_token);
        embed::backward_weights(cpu, self.0, (x, d_y), (&mut d_w, &mut d_bias), &mut scratch);
        (y, vec![vec![], d_w, d_bias, d_token, vec![]])
    }
}

#[test]
fn embedding() {
    for (images, side, patch, c) in [(1, 1, 1, 1), (3, 2, 3, 5), (2, 3, 2, 16), (1, 2, 4, 9)] {
        check(&Embed(EmbedShape { side, patch, c }, images));
    }
}
