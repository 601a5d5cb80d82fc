//! NumPy's file format, version 1.0, as far as a matrix of `f32` needs it.

/// Encodes `values` as `[values.len() / width, width]`, little-endian and in C order.
///
/// # Panics
/// If the rows are not complete.
pub fn encode(values: &[f32], width: usize) -> Vec<u8> {
    assert!(values.len().is_multiple_of(width), "{} values in rows of {width}", values.len());
    let rows = values.len() / width;
    let mut header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {width}), }}");
    // Magic, version, length and header together fill multiples of 64 bytes, the header ending in a newline.
    let unpadded = MAGIC.len() + 2 + header.len() + 1;
    header.push_str(&" ".repeat(unpadded.next_multiple_of(64) - unpadded));
    header.push('\n');
    let header_len = u16::try_from(header.len()).expect("two numbers fit into a header of 64 KiB");

    let mut file = Vec::with_capacity(MAGIC.len() + 2 + header.len() + size_of_val(values));
    file.extend_from_slice(MAGIC);
    file.extend_from_slice(&header_len.to_le_bytes());
    file.extend_from_slice(header.as_bytes());
    file.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    file
}

const MAGIC: &[u8] = b"\x93NUMPY\x01\x00";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_what_numpy_writes() {
        // numpy.save(f, numpy.array([[1, 2, 3], [4, 5, 6]], dtype="<f4")), as printed by `xxd -p`.
        let header = "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }";
        let file = encode(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 3);
        assert_eq!(&file[..10], b"\x93NUMPY\x01\x00\x76\x00");
        assert_eq!(file[10..128], *format!("{header:<117}\n").as_bytes());
        assert_eq!(file[128..132], 1f32.to_le_bytes());
        assert_eq!(file.len(), 128 + 24);
    }

    #[test]
    fn the_header_keeps_its_alignment_whatever_its_length() {
        for rows in [0, 1, 10, 1_000_000] {
            let file = encode(&vec![0.0; rows], 1);
            assert_eq!((file.len() - 4 * rows) % 64, 0);
            assert_eq!(file[file.len() - 4 * rows - 1], b'\n');
        }
    }
}
