use super::*;

const HELLO: Hello = Hello {
    rank: 3,
    dialled: 2,
    communicator: 1,
    n_communicators: 2,
    world_size: 4,
    generation: 7,
    nonce: [0xa5; 32],
};

fn key() -> hmac::Key {
    hmac::Key::new(hmac::HMAC_SHA256, &[7; 32])
}

/// `bytes` with one bit flipped, as damage leaves them and as an adversary does, who mends the checksum.
fn flipped<const N: usize>(bytes: &[u8; N], bit: usize) -> [[u8; N]; 2] {
    let mut damaged = *bytes;
    damaged[bit / 8] ^= 1 << (bit % 8);
    let mut forged = damaged;
    let crc = crc32c::crc32c(&forged[..N - 4]);
    forged[N - 4..].copy_from_slice(&crc.to_le_bytes());
    [damaged, forged]
}

/// What a message is refused for in which `bit` was flipped, the checksum not being mended.
fn damage(bit: usize) -> Refusal {
    if (64..96).contains(&bit) { Refusal::Version } else { Refusal::NotAWorker }
}

#[test]
fn the_layout_is_the_documented_one() {
    let hello = HELLO.encode();
    assert_eq!(hello[..12], *b"himpun\xf0\x0a\x02\0\0\0");
    assert_eq!(hello[12..36], [3, 0, 0, 0, 2, 0, 0, 0, 1, 0, 2, 0, 4, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(hello[36..68], [0xa5; 32]);
    assert_eq!(Hello::decode(&hello), Ok(HELLO));

    // Computed by Python's `hmac` over the documented layout.
    let challenge = challenge(&key(), &hello, &[0x5a; 32]);
    assert_eq!(challenge[12..48], [[0; 4].as_slice(), &[0x5a; 32]].concat());
    assert_eq!(hex(&challenge[48..80]), "ae6c7a8648bea2c2504baa35b5397f10e296b94379e751a00b96f84228a6173e");
    let proof = prove(&key(), &hello, &challenge).unwrap();
    assert_eq!(hex(&proof[12..44]), "dd2cd1f5f991bdf5dabc3de9f2230c8508ea8aa3b8478e8515c81bb2ff898729");
    assert_eq!(check_proof(&key(), &hello, &challenge, &proof), Ok(()));
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn a_flipped_bit_of_any_message_is_refused() {
    let key = key();
    let hello = HELLO.encode();
    let challenge = challenge(&key, &hello, &[0x5a; 32]);
    let proof = prove(&key, &hello, &challenge).unwrap();

    for bit in 0..HELLO_BYTES * 8 {
        let [damaged, forged] = flipped(&hello, bit);
        assert_eq!(Hello::decode(&damaged), Err(damage(bit)), "bit {bit}");
        // What the listener makes of it; the dialer knows what it sent.
        let answer = super::challenge(&key, &forged, &[0x5a; 32]);
        let is_sent = forged == hello;
        assert_eq!(prove(&key, &hello, &answer).err(), (!is_sent).then_some(Refusal::Key), "bit {bit}");
        assert_eq!(check_proof(&key, &damaged, &challenge, &proof), Err(Refusal::Key), "bit {bit}");
    }
    for bit in 0..CHALLENGE_BYTES * 8 {
        let [damaged, forged] = flipped(&challenge, bit);
        assert_eq!(prove(&key, &hello, &damaged), Err(damage(bit)), "bit {bit}");
        let refusal = match bit {
            0..96 => damage(bit),
            96..128 => verdict(1 << (bit - 96)).unwrap_err(),
            _ => Refusal::Key,
        };
        // A bit of the checksum itself is mended.
        assert_eq!(prove(&key, &hello, &forged).err(), (bit < 640).then_some(refusal), "bit {bit}");
        assert_eq!(check_proof(&key, &hello, &damaged, &proof), Err(Refusal::Key), "bit {bit}");
    }
    for bit in 0..PROOF_BYTES * 8 {
        let [damaged, forged] = flipped(&proof, bit);
        assert_eq!(check_proof(&key, &hello, &challenge, &damaged), Err(damage(bit)), "bit {bit}");
        let refusal = if bit < 96 { damage(bit) } else { Refusal::Key };
        let outcome = check_proof(&key, &hello, &challenge, &forged).err();
        assert_eq!(outcome, (bit < 352).then_some(refusal), "bit {bit}");
    }
    let welcome = encode_welcome(Ok(()));
    for bit in 0..WELCOME_BYTES * 8 {
        assert_eq!(decode_welcome(&flipped(&welcome, bit)[0]), Err(damage(bit)), "bit {bit}");
    }
}

#[test]
fn another_key_another_nonce_and_a_reflected_mac_are_refused() {
    let (key, other) = (key(), hmac::Key::new(hmac::HMAC_SHA256, &[8; 32]));
    let hello = HELLO.encode();
    let challenge = challenge(&key, &hello, &[0x5a; 32]);
    let proof = prove(&key, &hello, &challenge).unwrap();

    assert_eq!(prove(&other, &hello, &challenge), Err(Refusal::Key));
    assert_eq!(check_proof(&other, &hello, &challenge, &proof), Err(Refusal::Key));
    // Recorded, and sent again on a connection on which the other side drew another nonce.
    let later = super::challenge(&key, &hello, &[0x5b; 32]);
    assert_eq!(check_proof(&key, &hello, &later, &proof), Err(Refusal::Key));
    let later = Hello { nonce: [0xa6; 32], ..HELLO }.encode();
    assert_eq!(prove(&key, &later, &challenge), Err(Refusal::Key));
    // The listener's own MAC, sent back to it; and the dialer's.
    assert_eq!(check_proof(&key, &hello, &challenge, &seal(&[&challenge[48..80]])), Err(Refusal::Key));
    let echo = seal(&[&challenge[12..48], &proof[12..44]]);
    assert_eq!(prove(&key, &hello, &echo), Err(Refusal::Key));
}

#[test]
fn a_nonce_is_drawn_anew() {
    assert_ne!(nonce().unwrap(), nonce().unwrap());
}

#[test]
fn verdicts_read_back() {
    let refusals = [Refusal::Version, Refusal::Key, Refusal::Generation, Refusal::Place, Refusal::NotAWorker];
    for refusal in refusals {
        assert_eq!(decode_welcome(&encode_welcome(Err(refusal))), Err(refusal));
        assert_eq!(prove(&key(), &HELLO.encode(), &refuse(refusal)), Err(refusal));
    }
    assert_eq!(decode_welcome(&encode_welcome(Ok(()))), Ok(()));
    assert_eq!(decode_welcome(b"HTTP/1.1 400 Bad Req"), Err(Refusal::NotAWorker));
}

#[test]
fn garbage_is_recognised_by_its_first_byte_and_another_version_by_its_twelfth() {
    let hello = HELLO.encode();
    for len in 0..=HELLO_BYTES {
        assert_eq!(check_beginning(&hello[..len]), Ok(()));
    }
    assert_eq!(check_beginning(b"G"), Err(Refusal::NotAWorker));
    assert_eq!(check_beginning(b"himpun\xf0\x0b"), Err(Refusal::NotAWorker));
    assert_eq!(check_beginning(b"himpun\xf0\x0a\x01\0\0"), Ok(()));
    assert_eq!(check_beginning(b"himpun\xf0\x0a\x01\0\0\0"), Err(Refusal::Version));
}
