-- Two roles, as docs/operations.md says: one owns the database and makes the tables, the other only runs.
\getenv setup_password SETUP_PASSWORD
\getenv run_password RUN_PASSWORD
CREATE ROLE checkpoint_setup LOGIN PASSWORD :'setup_password';
CREATE ROLE checkpoint_run LOGIN PASSWORD :'run_password';
ALTER DATABASE checkpointing OWNER TO checkpoint_setup;
