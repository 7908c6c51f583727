-- As checkpoint_setup, after each `checkpointing setup`: what the application may do. It may be run again.
GRANT USAGE ON SCHEMA public TO checkpoint_run;
GRANT SELECT, INSERT, UPDATE, DELETE ON checkpoints, checkpoint_blobs, checkpoint_writes TO checkpoint_run;
GRANT SELECT ON checkpoint_migrations TO checkpoint_run;
