//! Writes the seed corpus: `cargo run -p keymeld-fuzz --bin corpus`.

use std::{fs, io};

use keymeld_fuzz::corpus;

fn main() -> io::Result<()> {
    let folder = corpus::folder();
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    let (mut files, mut bytes) = (0, 0);
    for (target, seeds) in corpus::seeds() {
        let folder = folder.join(target);
        fs::create_dir_all(&folder)?;
        for (name, seed) in seeds {
            files += 1;
            bytes += seed.len();
            fs::write(folder.join(name), seed)?;
        }
    }
    println!("{files} files, {bytes} bytes");
    Ok(())
}
