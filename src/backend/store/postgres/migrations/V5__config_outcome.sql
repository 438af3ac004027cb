-- What agents say of their configurations: when one was first in force, or why it is not.
ALTER TABLE configs ADD COLUMN applied_at timestamptz;
ALTER TABLE configs ADD COLUMN error text;
