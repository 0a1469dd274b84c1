//! What goes to standard output: text, tables, JSON.

use std::io::{self, Write};

use serde_json::Value;

use crate::failure::{Failure, one_line};

/// For whom the program prints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// For people.
    Text,
    /// For programs: one document on standard output, an object a line on standard error.
    Json,
}

/// Says what was done, to programs only: for people no news is good news, as with xl.
pub fn done(format: Format, value: &Value) -> Result<(), Failure> {
    match format {
        Format::Text => Ok(()),
        Format::Json => json(value),
    }
}

/// Writes bytes as they are.
pub fn bytes(bytes: &[u8], out: &mut impl Write) -> Result<(), Failure> {
    out.write_all(bytes)
        .and_then(|()| out.flush())
        .map_err(|e| failed(&e))
}

/// The failure for standard output that cannot be written.
pub fn failed(error: &io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::BrokenPipe => Failure::OutputClosed,
        _ => Failure::io("standard output", error),
    }
}

/// Writes a line; what a host said in it cannot do harm to a terminal.
pub fn line(text: &str) -> Result<(), Failure> {
    let mut text = one_line(text);
    text.push('\n');
    bytes(text.as_bytes(), &mut io::stdout().lock())
}

/// Writes JSON for programs.
pub fn json(value: &Value) -> Result<(), Failure> {
    let mut text = format!("{value:#}");
    text.push('\n');
    bytes(text.as_bytes(), &mut io::stdout().lock())
}

/// Writes a table: the first row is its head; columns named in `right` are right-aligned.
pub fn table(rows: &[Vec<String>], right: &[usize]) -> Result<(), Failure> {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| {
        rows.iter()
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<_> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            let pad = " ".repeat(width - cell.chars().count());
            let gap = if column == 0 { "" } else { "  " };
            if right.contains(&column) {
                line += &format!("{gap}{pad}{cell}");
            } else {
                line += &format!("{gap}{cell}{pad}");
            }
        }
        text += one_line(line.trim_end()).as_str();
        text.push('\n');
    }
    bytes(text.as_bytes(), &mut io::stdout().lock())
}

/// A size as a person reads it.
pub fn size(bytes: u64) -> String {
    let units = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
    for (unit, shift) in units {
        if bytes >> shift >= 1 {
            let tenths = (u128::from(bytes) * 10) >> shift;
            return match (tenths / 10, tenths % 10) {
                (whole, 0) => format!("{whole} {unit}"),
                (whole, tenth) => format!("{whole}.{tenth} {unit}"),
            };
        }
    }
    format!("{bytes} B")
}

/// CPU numbers as cpulists are written: "0-3,8".
pub fn cpu_list(cpus: &[u32]) -> String {
    let mut parts: Vec<(u32, u32)> = Vec::new();
    for cpu in cpus {
        match parts.last_mut() {
            Some((_, last)) if last.checked_add(1) == Some(*cpu) => *last = *cpu,
            _ => parts.push((*cpu, *cpu)),
        }
    }
    let parts: Vec<_> = parts
        .iter()
        .map(|(first, last)| match last - first {
            0 => format!("{first}"),
            _ => format!("{first}-{last}"),
        })
        .collect();
    parts.join(",")
}

/// A time as uptime(1) has it.
pub fn duration(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let clock = format!("{}:{:02}:{:02}", rest / 3600, rest / 60 % 60, rest % 60);
    match days {
        0 => clock,
        1 => format!("1 day, {clock}"),
        _ => format!("{days} days, {clock}"),
    }
}

/// Bytes as hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A UUID as RFC 9562 writes it.
pub fn uuid(bytes: &[u8; 16]) -> String {
    let digits = hex(bytes);
    [
        &digits[..8],
        &digits[8..12],
        &digits[12..16],
        &digits[16..20],
        &digits[20..],
    ]
    .join("-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_for_people() {
        assert_eq!(size(0), "0 B");
        assert_eq!(size(1023), "1023 B");
        assert_eq!(size(1536), "1.5 KiB");
        assert_eq!(size(64 << 20), "64 MiB");
        assert_eq!(size(u64::MAX), "16777215.9 TiB");
        assert_eq!(duration(59), "0:00:59");
        assert_eq!(duration(2 * 86_400 + 3661), "2 days, 1:01:01");
        assert_eq!(cpu_list(&[]), "");
        assert_eq!(cpu_list(&[0, 1, 2, 5, 7, 8]), "0-2,5,7-8");
        assert_eq!(cpu_list(&[u32::MAX, 0]), "4294967295,0");
        assert_eq!(uuid(&[0xab; 16]), "abababab-abab-abab-abab-abababababab");
    }
}
