//! `strftime_now` for templates that print the date, formatted as Python does in the C locale.

/// A local date and time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moment {
    /// The year, 1 to 9999.
    pub year: u16,
    /// 1 to 12.
    pub month: u8,
    /// 1 to 31.
    pub day: u8,
    /// 0 to 23.
    pub hour: u8,
    /// 0 to 59.
    pub minute: u8,
    /// 0 to 59.
    pub second: u8,
    /// 0 to 999,999.
    pub microsecond: u32,
}

/// The system's local time.
#[cfg(not(target_os = "unknown"))]
pub(in crate::tokenizer) fn now() -> Moment {
    use chrono::{Datelike, Timelike};
    let now = chrono::Local::now();
    Moment {
        year: now.year().clamp(1, 9999) as u16,
        month: now.month() as u8,
        day: now.day() as u8,
        hour: now.hour() as u8,
        minute: now.minute() as u8,
        second: now.second() as u8,
        microsecond: now.nanosecond() / 1000 % 1_000_000,
    }
}

const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

fn is_leap(year: i32) -> bool {
    year % 4 == 0 && (year % 100 != 0 || year % 400 == 0)
}

impl Moment {
    /// Days since the year began, from 0.
    fn day_of_year(&self) -> i32 {
        const BEFORE: [i32; 12] = [0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334];
        let leap = self.month > 2 && is_leap(self.year.into());
        BEFORE[usize::from(self.month).clamp(1, 12) - 1] + i32::from(leap) + i32::from(self.day) - 1
    }

    /// 0 is Sunday.
    fn weekday(&self) -> i32 {
        let before = i32::from(self.year) - 1;
        (before * 365 + before / 4 - before / 100 + before / 400 + self.day_of_year() + 1).rem_euclid(7)
    }

    /// Year and week number by ISO 8601: weeks start on Monday and belong to the year of their Thursday.
    fn iso_week(&self) -> (i32, i32) {
        let (year, monday_based) = (i32::from(self.year), (self.weekday() + 6) % 7);
        let week = (self.day_of_year() - monday_based + 10) / 7;
        let weeks = |year: i32| {
            let last = |year: i32| (year + year / 4 - year / 100 + year / 400).rem_euclid(7);
            52 + i32::from(last(year) == 4 || last(year - 1) == 3)
        };
        match week {
            0 => (year - 1, weeks(year - 1)),
            _ if week > weeks(year) => (year + 1, 1),
            _ => (year, week),
        }
    }

    /// Formats the moment.
    ///
    /// # Errors
    /// A sentence that names an unsupported directive.
    pub(super) fn strftime(&self, format: &str) -> Result<String, String> {
        let mut out = String::new();
        let mut rest = format.chars();
        while let Some(letter) = rest.next() {
            if letter != '%' {
                out.push(letter);
                continue;
            }
            // Flags as in C libraries: `%-d` no padding, `%_d` spaces, `%0e` zeros, `%^a` capitals.
            let (mut pad, mut upper) = (None, false);
            let directive = loop {
                match rest.next() {
                    Some(flag @ ('-' | '_' | '0')) => pad = Some(flag),
                    Some('^') => upper = true,
                    Some(directive) => break directive,
                    None => return Err("strftime_now: a format ends with `%`".to_owned()),
                }
            };
            let text = self.directive(directive, pad)?;
            out.push_str(&if upper { text.to_ascii_uppercase() } else { text });
        }
        Ok(out)
    }

    fn directive(&self, directive: char, pad: Option<char>) -> Result<String, String> {
        let number = |value: i32, width: usize, filled: char| match pad.unwrap_or(filled) {
            '-' => value.to_string(),
            '_' => format!("{value:width$}"),
            _ => format!("{value:0width$}"),
        };
        let weekday = self.weekday();
        let year = i32::from(self.year);
        let (hour, minute, second) = (self.hour.into(), self.minute.into(), self.second.into());
        let hour_of_12 = (hour + 11) % 12 + 1;
        let day_name = DAYS[weekday as usize];
        let month_name = MONTHS[usize::from(self.month).clamp(1, 12) - 1];
        let of = |format: &str| self.strftime(format);
        Ok(match directive {
            'a' => day_name[..3].to_owned(),
            'A' => day_name.to_owned(),
            'b' | 'h' => month_name[..3].to_owned(),
            'B' => month_name.to_owned(),
            'c' => of("%a %b %e %H:%M:%S %Y")?,
            'C' => number(year / 100, 2, '0'),
            'd' => number(self.day.into(), 2, '0'),
            'D' | 'x' => of("%m/%d/%y")?,
            'e' => number(self.day.into(), 2, '_'),
            'f' => format!("{:06}", self.microsecond),
            'F' => of("%Y-%m-%d")?,
            'g' => number(self.iso_week().0 % 100, 2, '0'),
            'G' => self.iso_week().0.to_string(),
            'H' => number(hour, 2, '0'),
            'I' => number(hour_of_12, 2, '0'),
            'j' => number(self.day_of_year() + 1, 3, '0'),
            'k' => number(hour, 2, '_'),
            'l' => number(hour_of_12, 2, '_'),
            'm' => number(self.month.into(), 2, '0'),
            'M' => number(minute, 2, '0'),
            'n' => "\n".to_owned(),
            'p' => (if hour < 12 { "AM" } else { "PM" }).to_owned(),
            'P' => (if hour < 12 { "am" } else { "pm" }).to_owned(),
            'r' => of("%I:%M:%S %p")?,
            'R' => of("%H:%M")?,
            'S' => number(second, 2, '0'),
            't' => "\t".to_owned(),
            'T' | 'X' => of("%H:%M:%S")?,
            'u' => ((weekday + 6) % 7 + 1).to_string(),
            'U' => number((self.day_of_year() + 7 - weekday) / 7, 2, '0'),
            'V' => number(self.iso_week().1, 2, '0'),
            'w' => weekday.to_string(),
            'W' => number((self.day_of_year() + 7 - (weekday + 6) % 7) / 7, 2, '0'),
            'y' => number(year % 100, 2, '0'),
            'Y' => year.to_string(),
            // Python's `datetime.now()` has no time zone.
            'z' | 'Z' => String::new(),
            '%' => "%".to_owned(),
            other => return Err(format!("strftime_now: `%{other}` is not supported")),
        })
    }
}
