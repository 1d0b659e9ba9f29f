//! Takes memory when it is told to.

use std::io::BufRead;

use crate::group;

/// Reads lines from standard input: a number of bytes to take, or `free`.
pub fn run(folders: &[String]) {
    group::join(folders);
    let mut taken: Vec<Vec<u8>> = Vec::new();
    println!("ready");
    for line in std::io::stdin().lock().lines().map_while(Result::ok) {
        match line.parse::<usize>() {
            // Every byte is written, so every page is there.
            Ok(bytes) => taken.push(vec![1; bytes]),
            Err(_) => taken.clear(),
        }
        println!("done");
    }
}
