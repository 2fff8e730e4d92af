//! Words that stand for tokens.

/// 256 common English words of 2 to 4 letters: with the space before it each is one token in the byte-pair vocabularies
/// of the usual models, and in the mock server's.
#[rustfmt::skip]
pub(super) const WORDS: [&str; 256] = [
    "the", "of", "and", "to", "in", "is", "you", "that", "it", "he", "was", "for", "on", "are",
    "as", "with", "his", "they", "at", "be", "this", "have", "from", "or", "one", "had", "by",
    "word", "but", "not", "what", "all", "were", "we", "when", "your", "can", "said", "use",
    "an", "each", "she", "do", "how", "if", "will", "up", "out", "many", "then", "them", "so",
    "some", "her", "like", "him", "into", "time", "has", "look", "two", "more", "go", "see",
    "way", "than", "been", "call", "who", "oil", "its", "now", "find", "long", "down", "day",
    "did", "get", "come", "made", "may", "part", "over", "new", "take", "only", "work", "know",
    "year", "live", "me", "back", "give", "most", "very", "just", "name", "good", "man", "say",
    "help", "much", "line", "too", "mean", "old", "any", "same", "tell", "boy", "want", "show",
    "also", "form", "set", "put", "end", "does", "well", "big", "even", "such", "here", "why",
    "ask", "went", "men", "read", "need", "land", "home", "us", "move", "try", "kind", "hand",
    "turn", "off", "play", "air", "away", "page", "near", "add", "food", "own", "last", "tree",
    "left", "few", "side", "feet", "car", "mile", "walk", "sea", "grew", "took", "four",
    "once", "book", "hear", "stop", "miss", "idea", "eat", "face", "far", "real", "let",
    "girl", "cut", "talk", "soon", "list", "song", "body", "sun", "fish", "area", "mark",
    "dog", "room", "knew", "ever", "easy", "red", "door", "sure", "top", "ship", "hour",
    "best", "low", "key", "ago", "law", "act", "fact", "war", "art", "age", "bad", "base",
    "bill", "blue", "box", "bank", "case", "cash", "cell", "club", "code", "cold", "cost",
    "data", "date", "deal", "dear", "deep", "draw", "drop", "dry", "duty", "east", "edge",
    "fall", "farm", "fast", "feel", "fell", "felt", "film", "fine", "fire", "five", "flat",
    "fly", "foot", "free", "fuel", "full", "game", "gave", "goal", "gold", "gone", "half",
    "hall", "hard", "hat", "held", "high", "hill", "hold", "hope",
];
