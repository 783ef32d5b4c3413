-- Data of one tenant that stands at revision 3, in whatever schema search_path names. About 1,200 rows, the same each time.
INSERT INTO accounts (slug, name, created_at) VALUES
    ('head-office', 'Head office', '2024-02-05 09:12:00+00'),
    ('field-team', 'Field team', '2024-03-18 14:40:00+00');

INSERT INTO users (account_id, email, full_name, created_at)
SELECT a.id, u.email, u.full_name, a.created_at + u.after
FROM (VALUES
    ('head-office', 'ada.lovelace@example.com', 'Ada Lovelace', interval '5 minutes'),
    ('head-office', 'grace@example.com', 'Grace Hopper', interval '1 day'),
    ('head-office', 'j.o''neil@example.com', 'Jo O''Neil', interval '9 days'),
    ('head-office', 'jose@example.com', 'José Núñez', interval '30 days'),
    ('field-team', 'margaret@example.com', 'Margaret Hamilton', interval '2 hours'),
    ('field-team', 'katherine@example.com', 'Katherine Johnson', interval '3 days'),
    ('field-team', 'ops+pager@example.com', NULL, interval '4 days')
) AS u (account, email, full_name, after)
JOIN accounts a ON a.slug = u.account;

INSERT INTO projects (account_id, owner_id, title, archived, created_at)
SELECT a.id, o.id, p.title, p.archived, a.created_at + interval '7 days'
FROM (VALUES
    ('head-office', 'ada.lovelace@example.com', 'Website relaunch', false),
    ('head-office', 'grace@example.com', 'Invoices: 100% digital', false),
    ('head-office', 'jose@example.com', 'Office move 2023', true),
    ('field-team', 'margaret@example.com', 'Sensor rollout', false),
    ('field-team', 'katherine@example.com', 'Maps & routes', false),
    ('field-team', NULL, 'Backlog', false)
) AS p (account, owner, title, archived)
JOIN accounts a ON a.slug = p.account
LEFT JOIN users o ON o.email = p.owner;

-- 200 tasks per project; those of an archived one are done, of the others about half.
INSERT INTO tasks (project_id, assignee_id, title, status, due_on, created_at)
SELECT
    p.id,
    CASE WHEN n % 5 > 0 THEN p.owner_id END,
    (ARRAY['Call', 'Review', 'Fix', 'Plan', 'Test', 'Ship', 'Document'])[1 + n % 7] || ' '
        || (ARRAY['the contract', 'the import', 'step', 'the "quick" path', 'unit'])[1 + n % 5] || ' #' || n,
    (CASE WHEN p.archived OR n % 2 = 0 THEN 'done' WHEN n % 3 = 0 THEN 'doing' ELSE 'todo' END)::task_status,
    CASE WHEN n % 4 > 0 THEN p.created_at::date + n END,
    p.created_at + n * interval '3 hours'
FROM projects p
CROSS JOIN generate_series(1, 200) AS n;
