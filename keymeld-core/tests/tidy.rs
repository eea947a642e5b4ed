//! What reviewers tire of: file lengths, names that say nothing, forbidden words, a core with a clock.

use std::fs;
use std::path::{Path, PathBuf};

const LINES_MAX: usize = 800;

fn workspace() -> PathBuf {
    let core = Path::new(env!("CARGO_MANIFEST_DIR"));
    core.parent().expect("core lies in the workspace").to_path_buf()
}

/// All files below a folder that git would track, by their endings.
fn files(folder: &Path, endings: &[&str], found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a readable folder") {
        let path = entry.expect("a readable entry").path();
        let name = path.file_name().expect("has a name").to_string_lossy().into_owned();
        if path.is_dir() {
            if !matches!(name.as_str(), "target" | ".git" | "corpus" | "artifacts") {
                files(&path, endings, found);
            }
        } else if endings.iter().any(|ending| name.ends_with(ending)) {
            found.push(path);
        }
    }
}

fn sources() -> Vec<(PathBuf, String)> {
    let mut paths = Vec::new();
    files(&workspace(), &[".rs"], &mut paths);
    assert!(paths.len() > 50, "the walk finds the sources");
    paths.into_iter().map(|path| (path.clone(), fs::read_to_string(path).expect("UTF-8"))).collect()
}

#[test]
fn files_are_one_idea_long() {
    for (path, text) in sources() {
        let count = text.lines().count();
        assert!(count <= LINES_MAX, "{} has {count} lines", path.display());
    }
}

#[test]
fn files_say_what_they_are() {
    const EMPTY_NAMES: [&str; 8] =
        ["util.rs", "utils.rs", "common.rs", "helpers.rs", "types.rs", "manager.rs", "handler.rs", "data.rs"];
    for (path, text) in sources() {
        let name = path.file_name().expect("has a name").to_string_lossy().into_owned();
        assert!(!EMPTY_NAMES.contains(&name.as_str()), "{}", path.display());
        assert!(text.starts_with("//!"), "{} does not say what it is", path.display());
    }
}

#[test]
fn nothing_is_left_for_later() {
    let words = ["todo!", "unimplemented!", "FIXME", "XXX"];
    for (path, text) in sources() {
        if path.ends_with("tests/tidy.rs") {
            continue;
        }
        for word in words {
            assert!(!text.contains(word), "{} contains {word}", path.display());
        }
    }
}

/// **Invariant:** clock, thread, file and socket are out of core's scope.
#[test]
fn core_is_no_std() {
    let lib = fs::read_to_string(workspace().join("keymeld-core/src/lib.rs")).expect("UTF-8");
    assert!(lib.contains("#![no_std]"));
    assert!(lib.contains("#[cfg(test)]\nextern crate std;"));
    let mut paths = Vec::new();
    files(&workspace().join("keymeld-core/src"), &[".rs"], &mut paths);
    let count = paths.iter().map(|path| fs::read_to_string(path).expect("UTF-8"));
    assert_eq!(count.map(|text| text.matches("extern crate std;").count()).sum::<usize>(), 1);
}

#[test]
fn every_workspace_dependency_has_its_purpose_beside_it() {
    let manifest = fs::read_to_string(workspace().join("Cargo.toml")).expect("UTF-8");
    let section = manifest.split("[workspace.dependencies]").nth(1).expect("has the section");
    let section = section.split("\n[").next().expect("not empty");
    let mut count = 0;
    for line in section.lines().filter(|line| line.contains('=') && !line.contains("path =")) {
        count += 1;
        assert!(line.contains(" # "), "no purpose beside: {line}");
    }
    assert!(count > 20, "the section is read");
}
