package pump

import "time"

// Settings tune the engine. Get them from DefaultSettings or AssignOptions.
type Settings struct {
	Memory          Size          `opt:"memory" default:"32m" help:"most bytes of items in flight between source and sink; one larger item may go beyond it"`
	BatchBytes      Size          `opt:"batch-bytes" default:"256k" help:"arena of one batch"`
	LaneItems       int           `opt:"lane-items" default:"24576" help:"most items that a lane writes at once"`
	LaneBytes       Size          `opt:"lane-bytes" default:"0" help:"most bytes that a lane writes at once; 0 shares half of memory between the lanes"`
	RetryTime       time.Duration `opt:"retry-time" default:"60s" help:"how long items are sent again, and a source that cannot be reached is tried again, without getting further before the run fails"`
	RetryMin        time.Duration `opt:"retry-min" default:"5ms" help:"first pause before items are sent again; it doubles each time"`
	RetryMax        time.Duration `opt:"retry-max" default:"1s" help:"longest pause before items are sent again"`
	RetryItem       time.Duration `opt:"retry-item" default:"30s" help:"how long a few items are sent again while all others of the same write were taken, before they are rejected; 0 does not reject them, and the run fails after retry-time"`
	RetryBudget     int           `opt:"retry-budget" default:"0" help:"how often items may be sent again in the whole run, all items together, before the run fails; 0 is no limit"`
	StreamLimit     int           `opt:"stream-limit" default:"64" help:"most source streams read at once"`
	StreamAttempts  int           `opt:"stream-attempts" default:"5" help:"how often a broken source stream is opened without getting further before it counts as failed"`
	CheckpointEvery time.Duration `opt:"checkpoint-every" default:"1s" help:"how often the progress is saved where there is a checkpoint; what was done after the last time is done again by the next run"`
	DrainTime       time.Duration `opt:"drain-time" default:"30s" help:"how long a stopped run may take to finish what it has read"`
}

// DefaultSettings returns the declared defaults.
func DefaultSettings() Settings {
	var s Settings
	// The declared defaults are decoded by the same code as user input; a test
	// proves that they decode.
	_ = DecodeOptions("engine", nil, &s)
	return s
}
