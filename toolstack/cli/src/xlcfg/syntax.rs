//! The grammar of xl's configuration files (`libxlu_cfg` in Xen's tools):
//!
//! ```text
//! file       = { [ assignment ] ( newline | ";" ) }
//! assignment = key ( "=" | "+=" ) value
//! key        = lower-case letter { lower-case letter | digit | "_" }
//! value      = number | string | "[" [ value { "," value } [ "," ] ] "]"
//! number     = digit { digit | "a".."f" | "x" }
//! string     = "'" ... "'" | '"' ... '"'      with \ as in C
//! ```
//!
//! Newlines are free inside brackets; `#` starts a comment. It looks like Python, which
//! it once was, but there is no code in it.

use super::{ConfigError, Position};

/// Deepest nesting of lists.
const MAX_DEPTH: u32 = 8;

/// A value and where it starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Value {
    /// What.
    pub kind: Kind,
    /// Where.
    pub at: Position,
}

/// What a value is. Numbers are text until someone asks for a number, as in xl, where
/// `memory = "512"` is as good as `memory = 512`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A string or a number.
    Text(String),
    /// A list.
    List(Vec<Value>),
}

/// One key's value, after all assignments to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// Left side.
    pub key: String,
    /// Right side.
    pub value: Value,
    /// Where the key stands that counts.
    pub at: Position,
    /// Where an assignment stood that this one replaced.
    pub replaced: Option<Position>,
}

/// Parses a file's text.
pub fn parse_file(text: &str, source: &str) -> Result<Vec<Setting>, ConfigError> {
    let mut settings = Vec::new();
    let mut parser = Parser::new(text, source);
    loop {
        parser.skip_lines();
        match parser.peek() {
            None => return Ok(settings),
            Some(';') => parser.bump(),
            Some(_) => {
                let assignment = parser.assignment(Parser::value)?;
                assignment.store(&mut settings)?;
                parser.skip_blanks();
                match parser.peek() {
                    None | Some('\n' | ';') => {}
                    Some(_) => return Err(parser.unexpected("the end of the line")),
                }
            }
        }
    }
}

/// Parses a `key=value` argument of the command line into `settings`, over what they
/// hold. The grammar is the file's; but as a shell eats quotes, a value that starts
/// neither with a quote nor with `[` is taken as it is.
pub fn parse_override(argument: &str, settings: &mut Vec<Setting>) -> Result<(), ConfigError> {
    let mut parser = Parser::new(argument, super::COMMAND_LINE);
    parser.skip_lines();
    let assignment = parser.assignment(|parser, depth| match parser.peek() {
        Some('"' | '\'' | '[') => parser.value(depth),
        _ => {
            let at = parser.position();
            let text = parser.rest.trim_end().to_owned();
            parser.rest = "";
            Ok(Value {
                kind: Kind::Text(text),
                at,
            })
        }
    })?;
    parser.skip_lines();
    if parser.peek().is_some() {
        return Err(parser.unexpected("the end of the argument"));
    }
    let key = assignment.key.clone();
    assignment.store(settings)?;
    // Replacing what the file says is what an override is for.
    if let Some(setting) = settings.iter_mut().find(|s| s.key == key) {
        setting.replaced = None;
    }
    Ok(())
}

struct Assignment {
    key: String,
    at: Position,
    add: bool,
    value: Value,
}

impl Assignment {
    fn store(self, settings: &mut Vec<Setting>) -> Result<(), ConfigError> {
        let Some(old) = settings.iter_mut().find(|s| s.key == self.key) else {
            settings.push(Setting {
                key: self.key,
                value: self.value,
                at: self.at,
                replaced: None,
            });
            return Ok(());
        };
        if !self.add {
            old.replaced = Some(std::mem::replace(&mut old.at, self.at));
            old.value = self.value;
            return Ok(());
        }
        match (&mut old.value.kind, self.value.kind) {
            (Kind::Text(old), Kind::Text(more)) => old.push_str(&more),
            (Kind::List(old), Kind::List(more)) => old.extend(more),
            _ => {
                let what = format!("{} += cannot join a list and a string", self.key);
                return Err(ConfigError::at(&self.value.at, what));
            }
        }
        Ok(())
    }
}

struct Parser<'a> {
    rest: &'a str,
    line: u32,
    column: u32,
    source: &'a str,
}

impl<'a> Parser<'a> {
    fn new(text: &'a str, source: &'a str) -> Self {
        Parser {
            rest: text.strip_prefix('\u{feff}').unwrap_or(text),
            line: 1,
            column: 1,
            source,
        }
    }

    fn position(&self) -> Position {
        Position {
            source: self.source.into(),
            line: self.line,
            column: self.column,
        }
    }

    fn peek(&self) -> Option<char> {
        self.rest.chars().next()
    }

    fn bump(&mut self) {
        let mut chars = self.rest.chars();
        match chars.next() {
            Some('\n') => {
                self.line = self.line.saturating_add(1);
                self.column = 1;
            }
            Some(_) => self.column = self.column.saturating_add(1),
            None => {}
        }
        self.rest = chars.as_str();
    }

    /// The characters from here that are `good`, taken.
    fn take_while(&mut self, good: impl Fn(char) -> bool) -> &'a str {
        let whole = self.rest;
        while self.peek().is_some_and(&good) {
            self.bump();
        }
        &whole[..whole.len() - self.rest.len()]
    }

    /// Blanks and comments up to the end of the line.
    fn skip_blanks(&mut self) {
        self.take_while(|c| matches!(c, ' ' | '\t' | '\r'));
        if self.peek() == Some('#') {
            self.take_while(|c| c != '\n');
        }
    }

    /// Blanks, comments and ends of lines.
    fn skip_lines(&mut self) {
        loop {
            self.skip_blanks();
            if self.peek() != Some('\n') {
                return;
            }
            self.bump();
        }
    }

    fn error(&self, what: impl Into<String>) -> ConfigError {
        ConfigError::at(&self.position(), what)
    }

    fn unexpected(&self, expected: &str) -> ConfigError {
        let found = match self.peek() {
            None => "the end".to_owned(),
            Some('\n') => "the end of the line".to_owned(),
            Some(c) => format!("'{}'", c.escape_debug()),
        };
        self.error(format!("expected {expected}, found {found}"))
    }

    fn assignment(
        &mut self,
        value: impl FnOnce(&mut Self, u32) -> Result<Value, ConfigError>,
    ) -> Result<Assignment, ConfigError> {
        let at = self.position();
        if !self.peek().is_some_and(|c| c.is_ascii_lowercase()) {
            return Err(self.unexpected("a key in lower case"));
        }
        let key = self.take_while(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
        self.skip_blanks();
        let add = self.peek() == Some('+');
        if add {
            self.bump();
        }
        if self.peek() != Some('=') {
            let python = ["import", "def", "if", "for", "from", "print"].contains(&key);
            return Err(if python {
                self.error("this looks like Python; only key = value is read")
            } else {
                self.unexpected("'=' after the key")
            });
        }
        self.bump();
        self.skip_blanks();
        Ok(Assignment {
            key: key.to_owned(),
            at,
            add,
            value: value(self, 0)?,
        })
    }

    fn value(&mut self, depth: u32) -> Result<Value, ConfigError> {
        let at = self.position();
        let kind = match self.peek() {
            Some('[') => Kind::List(self.list(depth)?),
            Some(quote @ ('"' | '\'')) => Kind::Text(self.string(quote)?),
            Some('0'..='9') => {
                let text = self.take_while(|c| c == 'x' || c.is_ascii_hexdigit());
                Kind::Text(text.to_owned())
            }
            _ => return Err(self.unexpected("a number, a quoted string or a list")),
        };
        Ok(Value { kind, at })
    }

    fn list(&mut self, depth: u32) -> Result<Vec<Value>, ConfigError> {
        if depth == MAX_DEPTH {
            return Err(self.error("lists nested too deeply"));
        }
        self.bump();
        let mut values = Vec::new();
        loop {
            self.skip_lines();
            if self.peek() == Some(']') {
                self.bump();
                return Ok(values);
            }
            values.push(self.value(depth + 1)?);
            self.skip_lines();
            match self.peek() {
                Some(',') => self.bump(),
                Some(']') => {}
                _ => return Err(self.unexpected("',' or ']'")),
            }
        }
    }

    fn string(&mut self, quote: char) -> Result<String, ConfigError> {
        let start = self.position();
        self.bump();
        let mut text = String::new();
        loop {
            match self.peek() {
                None | Some('\n') => {
                    return Err(ConfigError::at(&start, "the string has no closing quote"));
                }
                Some(c) if c == quote => {
                    self.bump();
                    return Ok(text);
                }
                Some('\\') => {
                    self.bump();
                    text.push(self.escape()?);
                }
                Some('\0') => return Err(self.error("a NUL in a string")),
                Some(c) => {
                    self.bump();
                    text.push(c);
                }
            }
        }
    }

    /// The character after a backslash.
    fn escape(&mut self) -> Result<char, ConfigError> {
        let (least, most, base) = match self.peek() {
            Some(c @ ('"' | '\'' | '\\')) => return Ok(self.escaped_as(c)),
            Some('a') => return Ok(self.escaped_as('\x07')),
            Some('b') => return Ok(self.escaped_as('\x08')),
            Some('f') => return Ok(self.escaped_as('\x0c')),
            Some('n') => return Ok(self.escaped_as('\n')),
            Some('r') => return Ok(self.escaped_as('\r')),
            Some('t') => return Ok(self.escaped_as('\t')),
            Some('v') => return Ok(self.escaped_as('\x0b')),
            Some('x') => {
                self.bump();
                (2, 2, 16)
            }
            Some('0'..='7') => (1, 3, 8),
            _ => return Err(self.unexpected("an escape such as \\n, \\\" or \\x41")),
        };
        let mut value = 0u32;
        let mut digits = 0;
        while digits < most
            && let Some(digit) = self.peek().and_then(|c| c.to_digit(base))
        {
            value = value * base + digit;
            digits += 1;
            self.bump();
        }
        match char::from_u32(value).filter(|c| digits >= least && c.is_ascii() && *c != '\0') {
            Some(c) => Ok(c),
            None => Err(self.error("a numeric escape that is not an ASCII character")),
        }
    }

    fn escaped_as(&mut self, c: char) -> char {
        self.bump();
        c
    }
}
