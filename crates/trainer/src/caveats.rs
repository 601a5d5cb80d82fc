//! What makes an accuracy mean less than it seems to: sentences for the user, beside the figure.

use data::Dataset;

/// A sentence if test images are the very images that they are compared with.
///
/// The one place where the two sets are held against each other, for `eval.data` and for `--test`.
pub fn of_test(test: &Dataset, bank: &Dataset) -> Option<String> {
    same_images(test, bank).then(|| {
        "the test images are the images compared with: every image finds itself; leave the test images out to \
         classify each by the others"
            .to_owned()
    })
}

/// Whether two sets have one fingerprint. Their contents are read only where their names agree: folders of equal size may
/// number their images alike.
fn same_images(a: &Dataset, b: &Dataset) -> bool {
    let of = |set: &Dataset| set.fingerprint(0).ok();
    a.len() == b.len()
        && a.blocks() == b.blocks()
        && of(a).is_some_and(|fingerprint| Some(fingerprint) == of(b))
}

/// Sentences on a bank that is too small for its accuracy to mean much.
///
/// - `images_per_class`: labelled images of each class, of all ranks
/// - `k`: neighbours that vote
/// - `leave_one_out`: whether each image of the bank is classified by the others
pub fn of_bank(images_per_class: &[u64], k: usize, leave_one_out: bool) -> Vec<String> {
    let bank: u64 = images_per_class.iter().sum();
    if leave_one_out && bank == 1 {
        return vec!["there is one labelled image, and no other to classify it by".to_owned()];
    }
    let mut caveats = Vec::new();
    let with = |holds: fn(u64) -> bool| images_per_class.iter().filter(|&&n| holds(n)).count();
    if with(|n| n > 0) == 1 {
        caveats.push(
            "the images compared with are all of one class: kNN says nothing about the features".to_owned(),
        );
    }
    match with(|n| n == 1) {
        0 => {}
        1 if leave_one_out => {
            caveats.push("one class has a single image, which no other image can classify".to_owned());
        }
        n if leave_one_out => {
            caveats.push(format!("{n} classes have a single image each, which no other image can classify"));
        }
        _ => {}
    }
    if k as u64 > bank {
        caveats.push(format!("k = {k} is more than the {bank} images compared with: all of them vote"));
    }
    caveats
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bank_that_says_little_is_named() {
        #[track_caller]
        fn check(images_per_class: &[u64], k: usize, leave_one_out: bool, expected: &[&str]) {
            let found = of_bank(images_per_class, k, leave_one_out);
            assert_eq!(found.len(), expected.len(), "{found:?}");
            for (found, expected) in found.iter().zip(expected) {
                assert!(found.contains(expected), "{found:?}");
            }
        }
        check(&[32, 32], 16, true, &[]);
        check(&[32, 0, 32], 64, false, &[]);
        check(&[0, 1], 1, true, &["no other to classify it by"]);
        check(&[0, 1], 1, false, &["all of one class"]);
        check(&[5, 0, 0], 2, true, &["all of one class"]);
        check(&[5, 1, 4], 2, true, &["one class has a single image"]);
        check(&[1, 1, 4], 2, true, &["2 classes have a single image each"]);
        check(&[1, 1, 4], 2, false, &[]);
        check(&[5, 5], 11, true, &["k = 11 is more than the 10 images"]);
    }
}
