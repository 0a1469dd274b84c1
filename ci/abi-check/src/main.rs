//! `abi-check VERSION FOLDER`: writes a C file for each of Xen's headers that `xen-abi`
//! speaks of, with a `_Static_assert` for each size, offset and constant. `cargo xtask
//! test` compiles them against the headers of every supported Xen.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::process::ExitCode;
use std::{env, fs, io};
use xen_abi::check::Header;

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    let [version, folder] = args.as_slice() else {
        eprintln!("usage: abi-check VERSION FOLDER");
        return ExitCode::FAILURE;
    };
    match write_all(version, Path::new(folder)) {
        Ok(asserts) => {
            println!("{asserts}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("cannot write to {folder}: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Writes the files for one Xen; gives the number of assertions.
fn write_all(version: &str, folder: &Path) -> io::Result<usize> {
    let mut files: BTreeMap<&str, String> = BTreeMap::new();
    let mut asserts = 0;
    for header in xen_abi::CHECKED_HEADERS {
        if header.versions.is_empty() || header.versions.contains(&version) {
            let text = files
                .entry(header.path)
                .or_insert_with(|| prologue(header.path));
            asserts += assertions(header, text);
        }
    }
    for (path, text) in &files {
        fs::write(
            folder.join(path.replace('/', "-")).with_extension("c"),
            text,
        )?;
    }
    Ok(asserts)
}

/// The toolstack's view of the headers, as `xen-tools` see them.
fn prologue(path: &str) -> String {
    format!(
        "#define __XEN_TOOLS__ 1\n#include <stddef.h>\n#include <stdint.h>\n\
         #include <xen/xen.h>\n#include <xen/{path}>\n"
    )
}

/// Appends a header's assertions; gives their number.
fn assertions(header: &Header, text: &mut String) -> usize {
    let mut lines = Vec::new();
    for layout in header.layouts {
        let name = layout.c_name;
        lines.push((
            format!("sizeof({name}) == {}", layout.size),
            format!("size of {name}"),
        ));
        for (field, offset) in layout.fields {
            lines.push((
                format!("offsetof({name}, {field}) == {offset}"),
                format!("offset of {field} in {name}"),
            ));
        }
    }
    for constant in header.constants {
        // In 64 bits on both sides: C would compare -1 and 0xffffffff as it likes.
        lines.push((
            format!(
                "(uint64_t)({}) == {}",
                constant.c_name,
                c_number(constant.value)
            ),
            constant.c_name.to_owned(),
        ));
    }
    for (condition, name) in &lines {
        // Writing to a String cannot fail.
        if writeln!(
            text,
            "_Static_assert({condition}, {:?});",
            format!("{name}: {condition}")
        )
        .is_err()
        {
            unreachable!("a String takes any text");
        }
    }
    lines.len()
}

/// A constant's value modulo 2^64.
fn c_number(value: i128) -> String {
    let modulus = 1_i128 << 64;
    format!("UINT64_C({})", value.rem_euclid(modulus))
}

#[cfg(test)]
mod tests {
    use super::*;
    use xen_abi::check::{Constant, Layout};

    #[test]
    fn sizes_fields_and_constants_each_give_one_assertion() {
        let header = Header {
            path: "io/x.h",
            versions: &[],
            layouts: &[Layout {
                c_name: "struct x",
                size: 8,
                fields: &[("a.b", 4)],
            }],
            constants: &[Constant {
                c_name: "X_MINUS",
                value: -1,
            }],
        };
        let mut text = String::new();
        assert_eq!(assertions(&header, &mut text), 3);
        assert!(
            text.contains("_Static_assert(sizeof(struct x) == 8,"),
            "{text}"
        );
        assert!(
            text.contains("_Static_assert(offsetof(struct x, a.b) == 4,"),
            "{text}"
        );
        assert!(
            text.contains("(uint64_t)(X_MINUS) == UINT64_C(18446744073709551615)"),
            "{text}"
        );
    }
}
