//! Zip archives of stored entries.

/// One entry of a zip archive: name, compression method, bytes.
pub type ZipEntry<'a> = (&'a str, u16, &'a [u8]);

/// A zip archive without checksums, which readers of stored entries need not look at.
pub fn zip(entries: &[ZipEntry<'_>]) -> Vec<u8> {
    let short = |n: usize| u16::try_from(n).unwrap().to_le_bytes();
    let word = |n: usize| u32::try_from(n).unwrap().to_le_bytes();
    let mut file = Vec::new();
    let mut directory = Vec::new();
    for (name, method, bytes) in entries {
        let start = file.len();
        let mut common = Vec::new();
        common.extend([0; 2]);
        common.extend(method.to_le_bytes());
        common.extend([0; 8]);
        common.extend(word(bytes.len()));
        common.extend(word(bytes.len()));
        common.extend(short(name.len()));
        common.extend([0; 2]);
        file.extend(b"PK\x03\x04\x14\0");
        file.extend(&common);
        file.extend(name.as_bytes());
        file.extend_from_slice(bytes);
        directory.extend(b"PK\x01\x02\x14\0\x14\0");
        directory.extend(&common);
        directory.extend([0; 10]);
        directory.extend(word(start));
        directory.extend(name.as_bytes());
    }
    let start = file.len();
    file.extend(&directory);
    file.extend(b"PK\x05\x06\0\0\0\0");
    file.extend(short(entries.len()));
    file.extend(short(entries.len()));
    file.extend(word(directory.len()));
    file.extend(word(start));
    file.extend([0; 2]);
    file
}
