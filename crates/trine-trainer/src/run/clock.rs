//! Dates, as people and programs read them.

use std::time::{SystemTime, UNIX_EPOCH};

/// A moment in UTC by RFC 3339, such as `2026-02-28T23:59:59.250Z`.
pub(crate) fn rfc3339(moment: SystemTime) -> String {
    let since = moment.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let (year, month, day) = date(days);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let millis = since.subsec_millis();
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{millis:03}Z")
}

/// Year, month and day of a day since 1970-01-01 in the Gregorian calendar. Years begin in March here,
/// so that the leap day is a year's last.
fn date(days: u64) -> (u64, u64, u64) {
    // 0000-03-01 lies so many days before, and 400 years have so many.
    let (from_march_0, era_days) = (days + 719_468, 146_097);
    let (era, day) = (from_march_0 / era_days, from_march_0 % era_days);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    // Five months from March on have 153 days, again and again.
    let month = (5 * day + 2) / 153;
    let day_of_month = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (400 * era + year + u64::from(month < 3), month, day_of_month)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn moments_are_those_of_the_calendar() {
        // By `date -u -d @SECONDS`.
        let cases = [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_399_999, "2000-02-28T23:59:59.999Z"),
            (951_868_800_000, "2000-03-01T00:00:00.000Z"),
            (1_709_164_800_500, "2024-02-29T00:00:00.500Z"),
            (1_798_761_599_000, "2026-12-31T23:59:59.000Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00.000Z"),
        ];
        for (millis, expected) in cases {
            assert_eq!(rfc3339(UNIX_EPOCH + Duration::from_millis(millis)), expected);
        }
        let mut before = date(0);
        for day in 1..80_000 {
            let next = date(day);
            let follows = next.2 == before.2 + 1 && (next.0, next.1) == (before.0, before.1);
            let begins = next.2 == 1 && before.2 >= 28 && next > before;
            assert!(follows || begins, "{before:?} {next:?}");
            before = next;
        }
    }
}
