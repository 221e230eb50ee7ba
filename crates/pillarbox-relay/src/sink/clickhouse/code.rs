//! ClickHouse's error codes by name (`src/Common/ErrorCodes.cpp`), grouped by what they mean for an
//! insert of one whole Native block. A code in no group is *unknown*.

pub(super) const CHECKSUM_DOESNT_MATCH: u32 = 40;
pub(super) const UNKNOWN_TABLE: u32 = 60;
pub(super) const TIMEOUT_EXCEEDED: u32 = 159;
pub(super) const READONLY: u32 = 164;
pub(super) const UNKNOWN_USER: u32 = 192;
pub(super) const WRONG_PASSWORD: u32 = 193;
pub(super) const REQUIRED_PASSWORD: u32 = 194;
pub(super) const NO_ZOOKEEPER: u32 = 225;
pub(super) const MEMORY_LIMIT_EXCEEDED: u32 = 241;
pub(super) const TABLE_IS_READ_ONLY: u32 = 242;
pub(super) const NOT_ENOUGH_SPACE: u32 = 243;
pub(super) const TOO_MANY_PARTS: u32 = 252;
pub(super) const CANNOT_DECOMPRESS: u32 = 271;
pub(super) const ACCESS_DENIED: u32 = 497;
pub(super) const AUTHENTICATION_FAILED: u32 = 516;

/// The server said no before it looked at the rows.
pub(super) const REFUSED_BEFORE_EXECUTION: [u32; 8] = [
    202, // TOO_MANY_SIMULTANEOUS_QUERIES
    203, // NO_FREE_CONNECTION
    TABLE_IS_READ_ONLY,
    341, // UNFINISHED
    373, // SESSION_IS_LOCKED
    439, // CANNOT_SCHEDULE_TASK
    517, // CANNOT_ASSIGN_ALTER
    745, // SERVER_OVERLOADED
];

/// Of those, the ones that a server may also raise when it commits.
pub(super) const RAISED_LATE: [u32; 4] = [
    TABLE_IS_READ_ONLY,
    341, // UNFINISHED
    439, // CANNOT_SCHEDULE_TASK
    517, // CANNOT_ASSIGN_ALTER
];

/// The block is larger than the server takes: halves may pass.
pub(super) const TOO_LARGE: [u32; 2] = [
    307, // TOO_MANY_BYTES
    396, // TOO_MANY_ROWS_OR_BYTES
];

/// The rows are bad.
pub(super) const DATA: [u32; 25] = [
    6,   // CANNOT_PARSE_TEXT
    26,  // CANNOT_PARSE_QUOTED_STRING
    27,  // CANNOT_PARSE_INPUT_ASSERTION_FAILED
    32,  // ATTEMPT_TO_READ_AFTER_EOF
    33,  // CANNOT_READ_ALL_DATA
    38,  // CANNOT_PARSE_DATE
    41,  // CANNOT_PARSE_DATETIME
    53,  // TYPE_MISMATCH
    69,  // ARGUMENT_OUT_OF_BOUND
    70,  // CANNOT_CONVERT_TYPE
    72,  // CANNOT_PARSE_NUMBER
    117, // INCORRECT_DATA
    130, // CANNOT_READ_ARRAY_FROM_TEXT
    131, // TOO_LARGE_STRING_SIZE
    190, // SIZES_OF_ARRAYS_DONT_MATCH
    321, // VALUE_IS_OUT_OF_RANGE_OF_DATA_TYPE
    349, // CANNOT_INSERT_NULL_IN_ORDINARY_COLUMN
    376, // CANNOT_PARSE_UUID
    395, // FUNCTION_THROW_IF_VALUE_IS_NON_ZERO
    407, // DECIMAL_OVERFLOW
    441, // CANNOT_PARSE_DOMAIN_VALUE_FROM_STRING
    469, // VIOLATED_CONSTRAINT
    675, // CANNOT_PARSE_IPV4
    676, // CANNOT_PARSE_IPV6
    691, // UNKNOWN_ELEMENT_OF_ENUM
];

/// The table is not what the plan says.
pub(super) const SCHEMA: [u32; 15] = [
    8,  // THERE_IS_NO_COLUMN (NO_SUCH_COLUMN in Native)
    10, // NOT_FOUND_COLUMN_IN_BLOCK
    16, // NO_SUCH_COLUMN_IN_TABLE
    20, // NUMBER_OF_COLUMNS_DOESNT_MATCH
    36, // BAD_ARGUMENTS
    44, // ILLEGAL_COLUMN
    47, // UNKNOWN_IDENTIFIER
    48, // NOT_IMPLEMENTED
    UNKNOWN_TABLE,
    62,  // SYNTAX_ERROR
    81,  // UNKNOWN_DATABASE
    115, // UNKNOWN_SETTING
    218, // TABLE_IS_DROPPED
    344, // SUPPORT_IS_DISABLED
    741, // TABLE_UUID_MISMATCH
];

/// The server cannot take more for a while.
pub(super) const CAPACITY: [u32; 2] = [
    201, // QUOTA_EXCEEDED
    NOT_ENOUGH_SPACE,
];

/// The user may not, or is not who it says.
pub(super) const ACCESS: [u32; 8] = [
    READONLY,
    UNKNOWN_USER,
    WRONG_PASSWORD,
    REQUIRED_PASSWORD,
    291, // DATABASE_ACCESS_DENIED
    ACCESS_DENIED,
    AUTHENTICATION_FAILED,
    574, // DISTRIBUTED_TOO_MANY_PENDING_BYTES
];
