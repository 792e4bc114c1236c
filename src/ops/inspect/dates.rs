//! Seconds since 1970 → a date in UTC, as text.

/// Seconds of a day.
const DAY: i64 = 86_400;

/// Last year that is written: anything later is no date.
const LAST_SECOND: f64 = 253_402_300_799.0;

/// `2024-03-05 10:22:41 UTC`; `None` where the number is no date.
pub fn utc(seconds: f64) -> Option<String> {
    if !(0.0..=LAST_SECOND).contains(&seconds) {
        return None;
    }
    let seconds = seconds as i64;
    let (days, rest) = (seconds.div_euclid(DAY), seconds.rem_euclid(DAY));
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    Some(format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} UTC"))
}

/// Year, month and day of a number of days since 1970, by counting 400-year cycles from 1 March 2000.
fn civil(days: i64) -> (i64, i64, i64) {
    const CYCLE: i64 = 146_097;
    /// Days from 1 January 1970 to 1 March 2000.
    const START: i64 = 11_017;
    let since = days - START;
    let (cycle, mut day) = (since.div_euclid(CYCLE), since.rem_euclid(CYCLE));
    let century = (day / 36_524).min(3);
    day -= century * 36_524;
    let four = day / 1461;
    day -= four * 1461;
    let year = (day / 365).min(3);
    day -= year * 365;
    // Months from March on: February, of varying length, comes last.
    const LENGTHS: [i64; 12] = [31, 30, 31, 30, 31, 31, 30, 31, 30, 31, 31, 29];
    let mut month = 0;
    while day >= LENGTHS[month] {
        day -= LENGTHS[month];
        month += 1;
    }
    let month = i64::try_from(month).unwrap_or(0) + 3;
    let year = 2000 + cycle * 400 + century * 100 + four * 4 + year + i64::from(month > 12);
    (year, (month - 1) % 12 + 1, day + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_seconds_are_known_dates() {
        for (seconds, text) in [
            (0.0, "1970-01-01 00:00:00 UTC"),
            (951_782_400.0, "2000-02-29 00:00:00 UTC"),
            (951_868_800.5, "2000-03-01 00:00:00 UTC"),
            (1_709_164_799.0, "2024-02-28 23:59:59 UTC"),
            (1_709_164_800.0, "2024-02-29 00:00:00 UTC"),
            (1_735_689_599.0, "2024-12-31 23:59:59 UTC"),
            (4_107_542_400.0, "2100-03-01 00:00:00 UTC"),
        ] {
            assert_eq!(utc(seconds).as_deref(), Some(text));
        }
        for odd in [-1.0, f64::NAN, f64::INFINITY, 1e18] {
            assert_eq!(utc(odd), None);
        }
    }
}
